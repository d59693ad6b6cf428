//! What the visor costs, as figures that can be compared over time.

mod attest;
mod block_seal;
mod disk_io;
mod exit_cost;
mod guest_boot;
mod guest_work;
mod host_boot;
mod iommu;
mod native;
mod plot;
mod reservation;
mod seal;
mod speed;
mod suspend;
mod workload;

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::paths;
use crate::suite::{Kit, Rig};

/// One figure under its fixed name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    bench: &'static str,
    metric: String,
    value: Value,
    unit: &'static str,
}

impl Figure {
    /// A figure that is a count.
    fn count(
        bench: &'static str,
        metric: impl Into<String>,
        value: u64,
        unit: &'static str,
    ) -> Self {
        let (metric, value) = (metric.into(), json!(value));
        Self { bench, metric, value, unit }
    }

    /// A figure that is `part` / `whole`, to six decimal places.
    fn ratio(
        bench: &'static str,
        metric: &str,
        part: u64,
        whole: u64,
        unit: &'static str,
    ) -> Result<Self> {
        let text = decimal(part, whole)?;
        let value = serde_json::from_str(&text)?;
        let metric = metric.to_owned();
        Ok(Self { bench, metric, value, unit })
    }

    /// The figure as one object of the array that `--json` writes.
    pub(crate) fn json(&self) -> Value {
        json!({
            "bench": self.bench,
            "metric": self.metric,
            "value": self.value,
            "unit": self.unit,
        })
    }

    /// The figure for people.
    pub(crate) fn line(&self) -> String {
        format!("{}: {} = {} {}", self.bench, self.metric, self.value, self.unit)
    }
}

/// `part` / `whole` in decimal notation.
fn decimal(part: u64, whole: u64) -> Result<String> {
    const PLACES: u128 = 1_000_000;
    let scaled = (u128::from(part) * PLACES).checked_div(u128::from(whole));
    match scaled {
        Some(scaled) => Ok(format!("{}.{:06}", scaled / PLACES, scaled % PLACES)),
        None => bail!("a ratio to nothing"),
    }
}

/// What follows `words` on the line of `serial` that begins with them.
fn text<'a>(serial: &'a str, words: &str) -> Result<&'a str> {
    let found = serial.lines().find_map(|line| line.strip_prefix(words));
    found.map(str::trim).with_context(|| format!("no line that begins with: {words}"))
}

/// The number there.
fn number(serial: &str, words: &str) -> Result<u64> {
    text(serial, words)?.parse().with_context(|| format!("no number after: {words}"))
}

/// A bench: a name, and what measures.
type Bench = (&'static str, fn(&Rig<'_>) -> Result<Vec<Figure>>);

/// Every bench there is.
pub(crate) const BENCHES: [Bench; 11] = [
    ("host-boot", host_boot::measure),
    ("reservation", reservation::measure),
    ("exit-cost", exit_cost::measure),
    ("guest-boot", guest_boot::measure),
    ("guest-work", guest_work::measure),
    ("iommu", iommu::measure),
    ("seal", seal::measure),
    ("block-seal", block_seal::measure),
    ("disk-io", disk_io::measure),
    ("suspend", suspend::measure),
    ("attest", attest::measure),
];

/// Runs the benches called `names`, or all.
pub(crate) fn run(names: &[String]) -> Result<Vec<Figure>> {
    if let Some(name) = names.iter().find(|name| BENCHES.iter().all(|(known, _)| known != name)) {
        let known = BENCHES.map(|(name, _)| name).join(", ");
        bail!("no bench is called {name}: there are {known}");
    }
    let (kit, logs) = (Kit::new(), paths::target("bench")?);
    let mut figures = Vec::new();
    for (name, measure) in BENCHES {
        if names.is_empty() || names.iter().any(|asked| asked == name) {
            let dir: &Path = &logs.join(name);
            paths::emptied(dir)?;
            figures.extend(measure(&Rig::new(&kit, dir))?);
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_exact_to_six_places() {
        assert_eq!(decimal(1_005, 1_000).unwrap(), "1.005000");
        assert_eq!(decimal(1, 3).unwrap(), "0.333333");
        assert_eq!(decimal(u64::MAX, 1).unwrap(), "18446744073709551615.000000");
        assert!(decimal(1, 0).is_err());
    }

    #[test]
    fn a_figure_has_the_four_fields_that_are_compared() {
        let figure = Figure::ratio("host-boot", "ratio", 101, 100, "1").unwrap();
        let expected = json!({"bench": "host-boot", "metric": "ratio", "value": 1.01, "unit": "1"});
        assert_eq!(figure.json(), expected);
    }

    #[test]
    fn an_unknown_bench_is_an_error_that_names_the_known_ones() {
        let error = run(&["x".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("called x") && error.contains("reservation"));
    }
}
