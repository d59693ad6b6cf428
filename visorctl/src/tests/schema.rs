//! A checker for as much of JSON Schema as `schema.json` uses.

use std::str::Chars;

use serde_json::Value;

/// `schema.json` of the program whose tests these are: `tenant`'s use this checker, too.
pub(crate) const SCHEMA: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schema.json"));

/// Panics where `value` is not as `schema.json` says.
pub(crate) fn check(value: &Value) {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    if let Err(why) = find_fault(&schema, &schema, value) {
        panic!("{why}: {value}");
    }
}

pub(crate) fn find_fault(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    for (word, rule) in schema.as_object().unwrap() {
        let is_right = match word.as_str() {
            "$schema" | "title" | "$defs" => true,
            "$ref" => {
                let path = rule.as_str().unwrap().strip_prefix('#').unwrap();
                find_fault(root, root.pointer(path).unwrap(), value)?;
                true
            }
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "type" => is_of_type(rule.as_str().unwrap(), value),
            // What follows says nothing of values of another type.
            "minimum" => value.as_number().is_none_or(|_| value.as_u64() >= rule.as_u64()),
            "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().unwrap(), text)),
            "oneOf" => {
                let fits = |rule: &&Value| find_fault(root, rule, value).is_ok();
                rule.as_array().unwrap().iter().filter(fits).count() == 1
            }
            "required" => {
                let mut names = rule.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                value.as_object().is_none_or(|fields| names.all(|name| fields.contains_key(name)))
            }
            "additionalProperties" => {
                let known = schema["properties"].as_object().unwrap();
                value
                    .as_object()
                    .is_none_or(|fields| fields.keys().all(|name| known.contains_key(name)))
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        find_fault(root, rule, value).map_err(|why| format!("{name}: {why}"))?;
                    }
                }
                true
            }
            "items" => {
                value
                    .as_array()
                    .unwrap()
                    .iter()
                    .try_for_each(|item| find_fault(root, rule, item))?;
                true
            }
            _ => return Err(format!("the schema says {word}, which is not known here")),
        };
        if !is_right {
            return Err(format!("{word} {rule}"));
        }
    }
    Ok(())
}

fn is_of_type(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

/// Patterns of the form `^prefix[0-9a-f]{least,most}$`.
fn matches(pattern: &str, text: &str) -> bool {
    let inner = pattern.strip_prefix('^').unwrap().strip_suffix("}$").unwrap();
    let (prefix, count) = inner.split_once("[0-9a-f]{").unwrap();
    let (least, most) = count.split_once(',').unwrap_or((count, count));
    let bounds = least.parse().unwrap()..=most.parse().unwrap();
    let is_digit = |digit: char| matches!(digit, '0'..='9' | 'a'..='f');
    let digits = text.strip_prefix(prefix).map(str::chars);
    digits.is_some_and(|digits: Chars<'_>| {
        bounds.contains(&digits.clone().count()) && digits.clone().all(is_digit)
    })
}
