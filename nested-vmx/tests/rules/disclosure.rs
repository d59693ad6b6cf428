//! The disclosure table and its document.

use nested_vmx::disclosure::{Answer, Exit, ROWS, Told};

#[path = "../../examples/disclosure.rs"]
#[expect(dead_code, reason = "the example's `main`")]
mod example;

#[test]
fn the_document_is_the_table() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/disclosure.md");
    let written = std::fs::read_to_string(file).unwrap();
    assert!(
        written == example::document(),
        "run: cargo run -p nested-vmx --example disclosure > docs/disclosure.md"
    );
}

#[test]
fn every_kind_of_exit_has_one_row() {
    for row in &ROWS {
        assert_eq!(ROWS.iter().filter(|other| other.exit == row.exit).count(), 1, "{}", row.name);
        assert_eq!(row.exit.row().unwrap().name, row.name);
    }
    // The last kind; all rows before it are of different kinds.
    assert_eq!(ROWS.len(), [Exit::Shutdown].len() + 34);
}

#[test]
fn nothing_is_disclosed_without_need() {
    for row in &ROWS {
        let is_instruction = row.tells(Told::Length);
        match row.answer {
            Answer::Visor | Answer::Ends => {
                assert!(row.told.is_empty() && row.sees.is_empty() && row.changes.is_empty());
            }
            Answer::Resumes => {
                assert!(!is_instruction && row.sees.is_empty() && row.changes.is_empty());
            }
            Answer::Completes | Answer::CompletesOrRaises(_) => assert!(is_instruction),
        }
    }
}
