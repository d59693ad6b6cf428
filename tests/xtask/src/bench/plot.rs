//! Plots: lines over sizes that double, both axes logarithmic, as SVG.

/// A line: its name, and a value at each size.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) values: Vec<u64>,
}

const WIDTH: u64 = 720;
const HEIGHT: u64 = 420;
const LEFT: u64 = 70;
const END: u64 = WIDTH - 190;
const TOP: u64 = 30;
const FLOOR: u64 = HEIGHT - 50;
/// More lines than these are not drawn.
const COLOURS: [&str; 3] = ["#1b6ca8", "#c8553d", "#588157"];
/// Thousandths of a doubling.
const UNIT: u64 = 1000;

/// The plot of `lines` at `sizes`.
pub(super) fn svg(title: &str, sizes: &[u64], lines: &[Line]) -> String {
    let scale = Scale::of(sizes, lines);
    let mut parts = vec![
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">"
        ),
        format!("<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>"),
        format!("<text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{title}</text>"),
    ];
    let powers = (0..).map(|power| 10_u64.pow(power));
    parts.extend(powers.map_while(|value| scale.row(value)));
    parts.extend(sizes.iter().map(|size| scale.column(*size)));
    let (middle, base) = (u64::midpoint(LEFT, END), HEIGHT - 10);
    parts.push(format!("<text x=\"{middle}\" y=\"{base}\" text-anchor=\"middle\">pages</text>"));
    parts.extend(lines.iter().zip(COLOURS).map(|(line, colour)| scale.line(sizes, line, colour)));
    parts.push("</svg>\n".to_owned());
    parts.join("\n")
}

/// Where numbers are drawn.
struct Scale {
    /// The logarithms at the left end, from there to the right end, and at the top.
    first: u64,
    span: u64,
    top: u64,
}

impl Scale {
    fn of(sizes: &[u64], lines: &[Line]) -> Self {
        let [first, last] =
            [sizes.first(), sizes.last()].map(|size| doublings(*size.unwrap_or(&1)));
        let largest = lines.iter().flat_map(|line| &line.values).max();
        let top = doublings(*largest.unwrap_or(&1)).next_multiple_of(UNIT).max(UNIT);
        Self { first, span: last.saturating_sub(first).max(1), top }
    }

    fn x(&self, size: u64) -> u64 {
        LEFT + doublings(size).saturating_sub(self.first) * (END - LEFT) / self.span
    }

    fn y(&self, value: u64) -> u64 {
        FLOOR - doublings(value) * (FLOOR - TOP) / self.top
    }

    /// A line of the grid, and what it stands for, unless that is above the top.
    fn row(&self, value: u64) -> Option<String> {
        if doublings(value) > self.top {
            return None;
        }
        let (at, left, label) = (self.y(value), LEFT - 6, short(value));
        let base = at + 4;
        Some(format!(
            "<path d=\"M{LEFT} {at}H{END}\" stroke=\"#ddd\"/>\n\
             <text x=\"{left}\" y=\"{base}\" text-anchor=\"end\">{label}</text>"
        ))
    }

    /// The same for a size.
    fn column(&self, size: u64) -> String {
        let (at, base, label) = (self.x(size), FLOOR + 18, short(size));
        format!(
            "<path d=\"M{at} {TOP}V{FLOOR}\" stroke=\"#ddd\"/>\n\
             <text x=\"{at}\" y=\"{base}\" text-anchor=\"middle\">{label}</text>"
        )
    }

    fn line(&self, sizes: &[u64], line: &Line, colour: &str) -> String {
        let points = sizes.iter().zip(&line.values);
        let points = points.map(|(size, value)| format!("{},{}", self.x(*size), self.y(*value)));
        let points = points.collect::<Vec<_>>().join(" ");
        let (at, base) = (END + 8, self.y(*line.values.last().unwrap_or(&1)) + 4);
        format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <text x=\"{at}\" y=\"{base}\" fill=\"{colour}\">{}</text>",
            line.name
        )
    }
}

/// How often 1 has to be doubled to come to `value`, in thousandths, rounded down.
fn doublings(value: u64) -> u64 {
    const TWO: u128 = 1 << 64;
    let whole = value.max(1).ilog2();
    // What is left is below 2. Squared, it is 2 or more if half a doubling is in it, and so on.
    let mut rest = u128::from(value.max(1)) << (63 - whole);
    let (mut part, mut sum) = (UNIT << 20, u64::from(whole) * (UNIT << 20));
    for _ in 0..20 {
        rest = ((rest >> 1) * (rest >> 1)) >> 61;
        part >>= 1;
        if rest >= TWO {
            rest >>= 1;
            sum += part;
        }
    }
    sum >> 20
}

/// A number with the prefix of its thousands: binary ones for powers of two.
fn short(value: u64) -> String {
    let (step, names) =
        if value.is_power_of_two() { (1024, ["", "Ki", "Mi"]) } else { (1000, ["", "k", "M"]) };
    let mut value = value;
    let mut names = names.into_iter();
    let mut name = names.next().unwrap_or_default();
    while value >= step
        && let Some(next) = names.next()
    {
        (value, name) = (value / step, next);
    }
    format!("{value} {name}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doublings_are_logarithms_to_base_two() {
        let of = [0, 1, 2, 3, 10, 1000, 1 << 20, u64::MAX].map(doublings);
        assert_eq!(of, [0, 0, 1000, 1584, 3321, 9965, 20_000, 63_999]);
    }

    #[test]
    fn numbers_are_short() {
        let of = [1, 10, 1000, 1024, 100_000, 1 << 18, 10_000_000, 1 << 20].map(short);
        assert_eq!(of, ["1", "10", "1 k", "1 Ki", "100 k", "256 Ki", "10 M", "1 Mi"]);
    }

    #[test]
    fn what_is_linear_is_a_straight_line() {
        let sizes = [1 << 10, 1 << 15, 1 << 20];
        let line = Line { name: "all", values: sizes.to_vec() };
        let plot = svg("title", &sizes, &[line]);
        let points = plot.split_once("points=\"").unwrap().1.split_once('"').unwrap().0;
        let points: Vec<(i64, i64)> = points
            .split(' ')
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert_eq!(points, [(70, 200), (300, 115), (530, 30)]);
        assert!(plot.contains(">title</text>") && plot.ends_with("</svg>\n"));
    }
}
