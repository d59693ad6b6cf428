//! The commands as they are called: answers, exit codes, and JSON.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::{fs, iter};

use clap::Parser;
use evidence::Challenge;
use serde_json::Value;
use tenant::cli::Cli;
use tenant::failure::Exit;
use tenant::run::run;

use super::enrollment::Folder;
use super::record::fixtures;
use super::schema;

/// Runs `tenant --json` at the time at which the evidence in this folder was asked for: the exit code,
/// and what is printed, which is as the schema says.
fn tenant<const N: usize>(name: &str, words: [&Path; N]) -> (Exit, Value) {
    let challenge: Challenge =
        evidence::read(&fixtures().join(name).join("challenge.json")).unwrap();
    let words = words.map(OsString::from);
    let cli =
        Cli::try_parse_from(["tenant", "--json"].map(OsString::from).into_iter().chain(words));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run(&cli.unwrap(), challenge.issued + 1, &mut out, &mut err);
    assert!(err.is_empty());
    let value: Value = serde_json::from_slice(&out).unwrap();
    schema::check(&value);
    assert_eq!(value["exit"], exit.code());
    (exit, value)
}

fn verify(command: &str, name: &str, policy: &Path, more: &[&Path]) -> (Exit, Value) {
    let evidence = fixtures().join(name).join("evidence.json");
    verify_file(&evidence, (command, name), policy, more)
}

/// `verify` with evidence from elsewhere, and all the rest of this folder.
pub(crate) fn run_verify(evidence: &Path, name: &str) -> (Exit, Value) {
    verify_file(evidence, ("verify", name), &fixtures().join(name).join("policy.toml"), &[])
}

fn verify_file(
    evidence: &Path,
    (command, name): (&str, &str),
    policy: &Path,
    more: &[&Path],
) -> (Exit, Value) {
    let file = |file: &str| fixtures().join(name).join(file);
    let mut words: Vec<OsString> = vec![command.into(), evidence.into()];
    words.extend(["--challenge".into(), file("challenge.json").into()]);
    let own = file("machine.json");
    let machine = if own.exists() { own } else { fixtures().join("machine.json") };
    words.extend(["--machine".into(), machine.into()]);
    words.extend(["--policy".into(), policy.into()]);
    words.extend(more.iter().map(OsString::from));
    let challenge: Challenge = evidence::read(&file("challenge.json")).unwrap();
    let words = ["tenant", "--json"].map(OsString::from).into_iter().chain(words);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let cli = Cli::try_parse_from(words).unwrap();
    let exit = run(&cli, challenge.issued + 1, &mut out, &mut err);
    let value: Value = serde_json::from_slice(&out).unwrap();
    schema::check(&value);
    assert_eq!(value["exit"], exit.code());
    (exit, value)
}

fn policy(name: &str) -> String {
    fs::read_to_string(fixtures().join(name).join("policy.toml")).unwrap()
}

fn put(folder: &Folder, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.path(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn good_evidence_ends_with_0_and_the_visors_key() {
    for name in ["plain", "txt"] {
        let (exit, told) = verify("verify", name, &fixtures().join(name).join("policy.toml"), &[]);
        assert_eq!((exit.code(), &told["answer"]["verdict"]), (0, &"trusted".into()), "{told}");
        assert_eq!(told["answer"]["key"].as_str().unwrap().len(), 128);
    }
}

#[test]
fn bad_evidence_ends_with_1_and_without_a_key() {
    let (exit, told) = verify("verify", "lax", &fixtures().join("lax/policy.toml"), &[]);
    assert_eq!((exit.code(), &told["answer"]["key"]), (1, &Value::Null));
    let claims = told["answer"]["claims"].as_array().unwrap();
    let unmet: Vec<_> = claims.iter().filter(|claim| claim["state"] == "unmet").collect();
    let names: Vec<_> = unmet.iter().map(|claim| claim["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["command-line", "iommu", "vmx", "dev-tickets"]);
    assert_eq!((&unmet[1]["expected"], &unmet[1]["actual"]), (&"on".into(), &"insecure".into()));
}

#[test]
fn revocation_lists_are_read_in_both_forms_and_nothing_else_is_one() {
    let file = |name: &str| fixtures().join("ecc256").join(name);
    let told = |lists: &[&str]| {
        let lists: Vec<_> = lists.iter().map(|name| file(name)).collect();
        let words: Vec<_> = lists.iter().flat_map(|list| [Path::new("--crl"), list]).collect();
        let (exit, told) = verify("verify", "ecc256", &file("policy.toml"), &words);
        (exit.code(), told["error"]["code"].clone())
    };
    assert_eq!(told(&["root.crl", "below.crl"]), (0, Value::Null));
    assert_eq!(told(&["root.crl", "below-revokes.crl"]), (1, Value::Null));
    assert_eq!(told(&["below-revokes.der"]), (1, Value::Null));
    assert_eq!(told(&["root.crl", "root.pem"]), (2, "revocation-list".into()));
    assert_eq!(told(&["policy.toml"]), (2, "revocation-list".into()));
    assert_eq!(told(&["missing.crl"]), (5, "file".into()));
}

#[test]
fn what_a_policy_waives_ends_with_3() {
    let folder = Folder::new("waived");
    let text = policy("lax").replace("console=com1", "dev-tickets insecure-no-iommu")
        + "\n[insecure]\ndev-tickets = true\nany-iommu = true\nwithout-vmx = true\n";
    let (exit, told) = verify("verify", "lax", &put(&folder, "policy", &text), &[]);
    assert_eq!((exit.code(), &told["answer"]["verdict"]), (3, &"insecure".into()));
}

#[test]
fn a_policy_that_is_none_ends_with_2_and_says_why() {
    let folder = Folder::new("policies");
    let good = policy("plain");
    let wrong = [
        ("launches", "launchs"),
        ("[visor]", "[visor]\nany-build = true"),
        ("format = 1\n", "format = 1\nallow = \"all\"\n"),
        ("iommu = [\"on\"]", "iommu = [\"yes\"]"),
        ("iommu = [\"on\"]", "iommu = []"),
        ("builds = [\"", "builds = [\"00"),
        ("index = 1\nexplained = true", "index = 10\nexplained = true"),
        ("index = 1\n", "index = 3\n"),
        ("index = 1\nexplained = true", "index = 19\nvalues = []"),
        ("index = 1\nexplained = true", "index = 17\nevents = []"),
        ("index = 1\nexplained = true", "index = 1"),
        ("index = 1\n", "index = 1\nvalues = []\n"),
        ("format = 1\n", ""),
        ("format = 1\n", "format = 1\n[insecure]\nunexplained = [19]\n"),
        ("format = 1\n", "format = 1\n[insecure]\nany = true\n"),
    ];
    for (at, (from, to)) in wrong.into_iter().enumerate() {
        assert!(good.contains(from), "{from}");
        let path = put(&folder, &format!("policy-{at}"), &good.replacen(from, to, 1));
        let (exit, told) = tenant("plain", [Path::new("policy"), Path::new("test"), &path]);
        assert_eq!((exit.code(), &told["error"]["code"]), (2, &"policy".into()), "{from}: {told}");
        assert_eq!(verify("verify", "plain", &path, &[]).0.code(), 2);
    }
    let later = put(&folder, "later", &good.replacen("format = 1", "format = 2", 1));
    assert_eq!(verify("verify", "plain", &later, &[]).0.code(), 4);
}

#[test]
fn files_of_a_later_version_end_with_4_and_missing_ones_with_5() {
    let folder = Folder::new("versions");
    let policy = fixtures().join("plain/policy.toml");
    let text = fs::read_to_string(fixtures().join("plain/evidence.json")).unwrap();
    let challenge = fixtures().join("plain/challenge.json");
    let machine = fixtures().join("machine.json");
    let check = |evidence: &Path, challenge: &Path| {
        let words = [
            Path::new("verify"),
            evidence,
            Path::new("--challenge"),
            challenge,
            Path::new("--machine"),
            &machine,
            Path::new("--policy"),
            &policy,
        ];
        tenant("plain", words).0.code()
    };
    let later = put(&folder, "later", &text.replace("visor-evidence-1", "visor-evidence-2"));
    assert_eq!(check(&later, &challenge), 4);
    let other = put(&folder, "other", &text.replace("visor-evidence-1", "visor-identity-1"));
    assert_eq!(check(&other, &challenge), 1);
    let more = put(&folder, "more", &text.replacen('{', "{\"trusted\": true,", 1));
    assert_eq!(check(&more, &challenge), 1);
    assert_eq!(check(&folder.path("missing"), &challenge), 5);
    assert_eq!(check(&fixtures().join("plain/evidence.json"), &machine), 5);
}

#[test]
fn words_that_make_no_command_end_with_2() {
    let program =
        |words: &[&str]| Command::new(env!("CARGO_BIN_EXE_tenant")).args(words).output().unwrap();
    assert_eq!(program(&["verify"]).status.code(), Some(2));
    let json = program(&["seal-it", "--json"]);
    assert_eq!(json.status.code(), Some(2));
    let told: Value = serde_json::from_slice(&json.stdout).unwrap();
    schema::check(&told);
    assert_eq!(told["error"]["code"], "usage");
    assert_eq!(program(&["--help"]).status.code(), Some(0));
    // People are told on standard error, and the exit code is the same.
    let people = program(&["policy", "test", "/nonexistent"]);
    assert_eq!((people.status.code(), people.stdout.as_slice()), (Some(5), &b""[..]));
    assert!(people.stderr.starts_with(b"tenant: /nonexistent: "));
}

#[test]
fn a_challenge_asks_for_what_its_policy_needs_and_never_twice_the_same() {
    let folder = Folder::new("challenge");
    let ask = |name: &str, out: &str| {
        let policy = fixtures().join(name).join("policy.toml");
        let words = [Path::new("challenge"), Path::new("--policy"), &policy, Path::new("--out")];
        let words: Vec<_> =
            words.into_iter().chain(iter::once(&*folder.path(out))).map(Path::to_owned).collect();
        tenant("plain", [&*words[0], &words[1], &words[2], &words[3], &words[4]])
    };
    let (exit, plain) = ask("plain", "one");
    assert_eq!(exit.code(), 0);
    let pcrs: Vec<u8> = (0..=9).chain(17..=19).collect();
    assert_eq!(plain["answer"]["pcrs"], serde_json::json!(pcrs));
    let (_, txt) = ask("txt", "two");
    let asked: Vec<_> =
        txt["answer"]["pcrs"].as_array().unwrap().iter().rev().take(3).cloned().collect();
    assert_eq!(asked, [19, 18, 17]);
    assert_ne!(plain["answer"]["nonce"], txt["answer"]["nonce"]);
    assert_eq!(ask("txt", "two").0.code(), 5);
}

#[test]
fn a_report_is_one_page_without_scripts_and_opens_what_does_not_hold() {
    let folder = Folder::new("report");
    let page = |name: &str| {
        let out = folder.path(name);
        let policy = fixtures().join(name).join("policy.toml");
        let _ = verify("report", name, &policy, &[Path::new("--out"), &out]);
        fs::read_to_string(out).unwrap()
    };
    let (good, bad) = (page("plain"), page("lax"));
    assert_eq!(
        (good.matches("<details open>").count(), bad.matches("<details open>").count()),
        (0, 4)
    );
    for page in [&good, &bad] {
        assert!(
            !page.contains("<script") && !page.contains("http://") && !page.contains("https://")
        );
        assert!(page.contains("default-src 'none'"));
        let links = ["hardware", "quote", "boot", "visor", "key"];
        assert!(links.iter().all(|link| page.contains(&format!("<h2 id=\"{link}\">"))));
    }
}

#[test]
fn cases_of_a_policy_come_out_as_they_should_or_end_with_1() {
    let folder = Folder::new("cases");
    let issued = |name: &str| {
        let path = fixtures().join(name).join("challenge.json");
        evidence::read::<Challenge>(&path).unwrap().issued
    };
    let case = |name: &str, verdict: &str, claims: &str| {
        format!(
            "[[case]]\nname = \"{name}\"\nevidence = \"{0}/{name}/evidence.json\"\n\
             challenge = \"{0}/{name}/challenge.json\"\nmachine = \"{0}/machine.json\"\nnow = {1}\n\
             verdict = \"{verdict}\"\nclaims = [{claims}]\n",
            fixtures().display(),
            issued(name)
        )
    };
    let policy = fixtures().join("plain/policy.toml");
    let test = |cases: &Path| {
        tenant(
            "plain",
            [Path::new("policy"), Path::new("test"), &policy, Path::new("--cases"), cases],
        )
    };
    let good = case("plain", "trusted", "")
        + &case("lax", "not-trusted", r#""command-line", "iommu", "vmx", "dev-tickets""#);
    let (exit, told) = test(&put(&folder, "good", &good));
    assert_eq!((exit.code(), &told["answer"]["cases"]), (0, &2.into()), "{told}");
    let (exit, told) = test(&put(&folder, "bad", &case("lax", "trusted", "")));
    assert_eq!((exit.code(), &told["error"]["code"]), (1, &"cases".into()));
    let (exit, _) = test(&put(&folder, "typo", &good.replace("verdict", "verdikt")));
    assert_eq!(exit.code(), 2);
}

#[test]
fn a_difference_between_boots_is_told_by_its_events() {
    let evidence = ["plain", "lax"].map(|name| fixtures().join(name).join("evidence.json"));
    let [before, after] = &evidence;
    let (_, told) = tenant("plain", [Path::new("diff"), before, after]);
    let events = told["answer"]["events"].as_array().unwrap();
    assert_eq!((&told["answer"]["pcrs"], events.len()), (&serde_json::json!([19]), 4), "{told}");
    let (_, same) = tenant("plain", [Path::new("diff"), before, before]);
    assert_eq!(same["answer"], serde_json::json!({"pcrs": [], "events": []}));
}

#[test]
fn what_a_build_will_measure_is_what_it_measured() {
    let folder = Folder::new("expect");
    let visor = folder.path("visor.elf");
    fs::write(&visor, super::boot::VISOR).unwrap();
    let line = [Path::new("--command-line"), Path::new(super::boot::COMMAND_LINE)];
    let (_, told) = tenant("plain", [Path::new("expect"), &visor, line[0], line[1]]);
    let text = policy("plain");
    assert!(text.contains(told["answer"]["build"].as_str().unwrap()));
    assert_eq!(told["answer"]["command_line"], "console=com1");
    // SHA-256 of the two digests that `openssl dgst` makes of command line and image.
    let tboot = "d990d499c9baa62eb5f048809ef4502a090a5b580fe4c0b4067ddefe3352ee27";
    assert_eq!(told["answer"]["tboot"], tboot);
}

#[test]
fn completions_and_manual_pages_are_made_from_the_same_words() {
    let folder = Folder::new("man");
    let (_, script) = tenant("plain", [Path::new("completions"), Path::new("bash")]);
    assert!(script["answer"]["script"].as_str().unwrap().contains("challenge"));
    assert_eq!(tenant("plain", [Path::new("man"), &folder.path("pages")]).0.code(), 0);
    assert!(folder.path("pages/tenant-verify.1").exists());
}
