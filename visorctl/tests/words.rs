//! The program itself, as far as it needs no port: words, streams and exit codes.

#![expect(clippy::unwrap_used, reason = "a program that does not start is a failed test")]

use std::process::{Command, Output};

fn visorctl(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_visorctl")).args(words).output().unwrap()
}

#[test]
fn wrong_words_end_with_exit_code_2_and_as_json_if_that_is_asked_for() {
    let people = visorctl(&["destroy", "64"]);
    assert_eq!((people.status.code(), people.stdout.as_slice()), (Some(2), &b""[..]));
    assert!(people.stderr.starts_with(b"error: "));
    let json = visorctl(&["destroy", "64", "--json"]);
    assert_eq!(json.status.code(), Some(2));
    let line = String::from_utf8(json.stdout).unwrap();
    assert!(line.starts_with(r#"{"schema":1,"command":null,"exit":2,"error":{"code":"usage","#));
}

#[test]
fn help_and_version_are_answers() {
    for word in ["--help", "--version"] {
        let answer = visorctl(&[word]);
        assert_eq!((answer.status.code(), answer.stderr.as_slice()), (Some(0), &b""[..]));
        assert!(!answer.stdout.is_empty());
    }
}

#[test]
fn a_failure_goes_to_standard_error_for_people_and_to_standard_output_as_json() {
    let words = ["submit", "/nonexistent/ticket"];
    let people = visorctl(&words);
    assert_eq!((people.status.code(), people.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(people.stderr.starts_with(b"visorctl: /nonexistent/ticket: "));
    let json = visorctl(&["--json", words[0], words[1]]);
    assert_eq!((json.status.code(), json.stderr.as_slice()), (Some(1), &b""[..]));
    assert!(String::from_utf8(json.stdout).unwrap().contains(r#""code":"file""#));
}
