//! `report`: the verdict as one page of HTML, without scripts and without anything from elsewhere.

use crate::check::Verified;
use crate::verify::{Claim, Link, State, Verdict};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
ol.chain{display:flex;flex-wrap:wrap;gap:.5rem;padding:0;list-style:none}\
ol.chain li{flex:1;min-width:7rem;padding:.75rem;border-radius:.5rem;text-align:center;color:#fff}\
.met{background:#1a7f37}.unmet{background:#b3261e}.waived{background:#8a6100}.unknown{background:#5f6368}\
.chain a{color:inherit;text-decoration:none;display:block}\
details{border:1px solid #ccc;border-radius:.5rem;margin:.5rem 0;padding:.25rem .75rem}\
summary{cursor:pointer}summary b{border-radius:.25rem;color:#fff;padding:0 .4rem;font-size:.85em}\
dl{display:grid;grid-template-columns:6rem 1fr;gap:.25rem 1rem}dd{margin:0;overflow-wrap:anywhere;font-family:ui-monospace,monospace;font-size:.85em}\
dd.text{font-family:inherit;font-size:1em}";

/// The page.
#[must_use]
pub fn page(verified: &Verified) -> String {
    let verdict = match verified.verdict {
        Verdict::Trusted => ("met", "Trusted"),
        Verdict::NotTrusted => ("unmet", "Not trusted"),
        Verdict::Insecure => ("waived", "Insecure: the policy waives what does not hold"),
    };
    let (class, words) = verdict;
    let links: String = Link::ALL.into_iter().map(|link| chain(link, verified)).collect();
    let sections: String = Link::ALL.into_iter().map(|link| section(link, verified)).collect();
    let key = verified.key.as_ref().map_or_else(String::new, |key| {
        format!("<p>The visor's keys, X25519 and Ed25519: <code style=\"overflow-wrap:anywhere\">{key}</code></p>")
    });
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{words}</title><style>{STYLE}</style></head><body>\
         <h1><span class=\"{class}\" style=\"padding:.1em .4em;border-radius:.3em;color:#fff\">{words}</span></h1>\
         <ol class=\"chain\">{links}</ol>{key}{sections}</body></html>\n"
    )
}

fn claims_of(link: Link, verified: &Verified) -> impl Iterator<Item = &Claim> {
    verified.claims.iter().filter(move |claim| claim.link == link)
}

/// The worst state of a link's claims.
fn worst(link: Link, verified: &Verified) -> State {
    let states: Vec<State> = claims_of(link, verified).map(|claim| claim.state).collect();
    let all = [State::Unmet, State::Unknown, State::Waived];
    all.into_iter().find(|state| states.contains(state)).unwrap_or(State::Met)
}

const fn class(state: State) -> &'static str {
    match state {
        State::Met => "met",
        State::Unmet => "unmet",
        State::Waived => "waived",
        State::Unknown => "unknown",
    }
}

const fn word(state: State) -> &'static str {
    match state {
        State::Met => "holds",
        State::Unmet => "broken",
        State::Waived => "waived",
        State::Unknown => "cannot be said",
    }
}

fn chain(link: Link, verified: &Verified) -> String {
    let (name, state) = (link.name(), worst(link, verified));
    format!("<li class=\"{}\"><a href=\"#{name}\">{name}<br>{}</a></li>", class(state), word(state))
}

/// A link's claims. Those that do not hold are open.
fn section(link: Link, verified: &Verified) -> String {
    let claims: String = claims_of(link, verified).map(claim).collect();
    format!("<h2 id=\"{name}\">{name}</h2>{claims}", name = link.name())
}

fn claim(claim: &Claim) -> String {
    let open = if claim.state == State::Met { "" } else { " open" };
    let pcr = claim.pcr.map_or_else(String::new, |pcr| format!(" {pcr}"));
    let remedy = if claim.state == State::Met {
        String::new()
    } else {
        format!("<dt>what to do</dt><dd class=\"text\">{}</dd>", escape(claim.remedy))
    };
    format!(
        "<details{open}><summary><b class=\"{}\">{}</b> {}{pcr}</summary><dl><dt>expected</dt><dd>{}</dd>\
         <dt>actual</dt><dd>{}</dd><dt>from</dt><dd>{}</dd>{remedy}</dl></details>",
        class(claim.state),
        word(claim.state),
        claim.id,
        escape(&claim.expected),
        escape(&claim.actual),
        escape(&claim.source),
    )
}

/// Text that HTML takes for nothing but text. Some of it comes from the machine that is checked.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_of_a_text_is_markup() {
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
