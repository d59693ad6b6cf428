//! The checker of JSON Schema that the tests of both programs use.

use serde_json::{Value, json};

use super::schema::{SCHEMA, check, find_fault};

#[test]
fn the_checker_finds_faults() {
    let good = json!({"schema": 1, "command": "destroy", "exit": 0, "answer": {"vm": 3}});
    check(&good);
    let faults = [
        ("/schema", json!(2)),
        ("/command", json!("x")),
        ("/exit", json!(4)),
        ("/answer", json!({"vm": 3, "more": 1})),
        ("/answer", json!({"vm": "3"})),
        ("/answer", json!({"vm": -1})),
        ("/answer", json!({"vms": [{"vm": 1}], "unprotected": 0})),
        ("/answer", json!({"id": "0", "ranges": 1, "pages": 1, "bytes": 1})),
    ];
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for (place, wrong) in faults {
        let mut value = good.clone();
        *value.pointer_mut(place).unwrap() = wrong.clone();
        assert!(find_fault(&schema, &schema, &value).is_err(), "{place}: {wrong}");
    }
}
