//! When two tools' JSON says the same: on every field that both have.
//!
//! A tool may know fields that the other does not (versions of qemu-img differ in that, too), but a
//! field that both print must be equal. Of a map, the extents are joined first, because where one
//! tool's queries end is no property of the image.

use serde_json::{Map, Value};

/// Fields whose values may differ, with the reason.
pub(super) const MAY_DIFFER: &[(&str, &str)] = &[];

/// Fields that ours must have where theirs has them, so that printing little is no way to agree.
const MUST_HAVE: &[&str] = &[
    // of a map
    "start",
    "length",
    "depth",
    "present",
    "zero",
    "data",
    "compressed",
    "offset",
    // of an image
    "filename",
    "format",
    "virtual-size",
    "actual-size",
    "cluster-size",
    "dirty-flag",
    "backing-filename",
    "full-backing-filename",
    "backing-filename-format",
    "snapshots",
    "format-specific",
    // of qcow2
    "compat",
    "compression-type",
    "lazy-refcounts",
    "refcount-bits",
    "corrupt",
    "extended-l2",
    "data-file",
    "data-file-raw",
    "bitmaps",
    // of vmdk
    "cid",
    "parent-cid",
    "create-type",
    "extents",
];

/// Where two values that both tools print differ; `path` is where they stand.
pub(super) fn differences(path: &str, ours: &Value, theirs: &Value) -> Vec<String> {
    if MAY_DIFFER.iter().any(|(field, _)| path.ends_with(field)) {
        return Vec::new();
    }
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => theirs
            .iter()
            .flat_map(|(key, theirs)| match ours.get(key) {
                Some(ours) => differences(&format!("{path}.{key}"), ours, theirs),
                None if MUST_HAVE.contains(&key.as_str()) => {
                    vec![format!("{path}: ours has no {key}")]
                }
                None => Vec::new(),
            })
            .collect(),
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            let pairs = ours.iter().zip(theirs).enumerate();
            pairs
                .flat_map(|(i, (ours, theirs))| differences(&format!("{path}[{i}]"), ours, theirs))
                .collect()
        }
        _ if ours == theirs => Vec::new(),
        _ => vec![format!("{path}: ours {}, theirs {}", short(ours), short(theirs))],
    }
}

/// How many values both have, for the table.
pub(super) fn count_common(ours: &Value, theirs: &Value) -> usize {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.iter().filter_map(|(key, value)| Some(count_common(value, theirs.get(key)?))).sum()
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.iter().zip(theirs).map(|(a, b)| count_common(a, b)).sum()
        }
        _ => 1,
    }
}

/// A map's extents with neighbours that say the same joined.
pub(super) fn joined(map: &Value) -> Value {
    let mut joined: Vec<Map<String, Value>> = Vec::new();
    for extent in map.as_array().into_iter().flatten().filter_map(Value::as_object) {
        match joined.last_mut() {
            Some(last) if continues(last, extent) => {
                let len = number(last, "length") + number(extent, "length");
                last.insert("length".to_owned(), len.into());
            }
            _ => joined.push(extent.clone()),
        }
    }
    joined.into_iter().map(Value::Object).collect()
}

/// Whether `next` begins where `last` ends, in the guest and on the host, and says the same.
fn continues(last: &Map<String, Value>, next: &Map<String, Value>) -> bool {
    let adjoins = |key| number(last, key) + number(last, "length") == number(next, key);
    let is_place = |key: &str| ["start", "length", "offset"].contains(&key);
    let says = |extent: &Map<String, Value>| -> Map<String, Value> {
        let facts = extent.iter().filter(|(key, _)| !is_place(key));
        facts.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let places = match (last.contains_key("offset"), next.contains_key("offset")) {
        (true, true) => adjoins("offset"),
        (false, false) => true,
        _ => false,
    };
    places && adjoins("start") && says(last) == says(next)
}

fn number(extent: &Map<String, Value>, key: &str) -> u64 {
    extent.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(120) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_that_only_one_has_does_not_matter() {
        let (ours, theirs) = (json!({"a": 1, "b": 2}), json!({"a": 1, "c": 3}));
        assert!(differences("", &ours, &theirs).is_empty());
        assert_eq!(count_common(&ours, &theirs), 1);
    }

    #[test]
    fn a_field_that_matters_must_be_there() {
        let (ours, theirs) = (json!({"format": "raw"}), json!({"format": "raw", "data": true}));
        assert_eq!(differences("x", &ours, &theirs), ["x: ours has no data"]);
        assert!(differences("x", &theirs, &ours).is_empty());
    }

    #[test]
    fn a_field_that_differs_is_named() {
        let (ours, theirs) = (json!([{"a": {"b": 1}}]), json!([{"a": {"b": "1"}}]));
        assert_eq!(differences("info", &ours, &theirs), ["info[0].a.b: ours 1, theirs \"1\""]);
    }

    #[test]
    fn arrays_of_different_lengths_differ() {
        assert_eq!(differences("x", &json!([1]), &json!([1, 2])).len(), 1);
    }

    #[test]
    fn extents_that_say_the_same_are_joined() {
        let map = json!([
            {"start": 0, "length": 4, "data": true, "offset": 100},
            {"start": 4, "length": 4, "data": true, "offset": 104},
            {"start": 8, "length": 4, "data": true, "offset": 200},
            {"start": 12, "length": 4, "data": false},
            {"start": 16, "length": 4, "data": false},
        ]);
        let expected = json!([
            {"start": 0, "length": 8, "data": true, "offset": 100},
            {"start": 8, "length": 4, "data": true, "offset": 200},
            {"start": 12, "length": 8, "data": false},
        ]);
        assert_eq!(joined(&map), expected);
    }

    #[test]
    fn a_hole_at_another_place_is_a_difference() {
        let ours = json!([{"start": 0, "length": 4, "data": true}]);
        let theirs = json!([{"start": 0, "length": 5, "data": true}]);
        assert_eq!(differences("map", &joined(&ours), &joined(&theirs)).len(), 1);
    }
}
