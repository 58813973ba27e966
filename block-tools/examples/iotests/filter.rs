//! What is left of an output before it is compared: nothing that depends on the run, the time or the place.

use std::fmt::Write as _;

use serde_json::Value;

/// Names that stand for what they are in a run.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// The image.
    pub(crate) image: String,
    /// The directory of all other files.
    pub(crate) dir: String,
    /// The format's driver.
    pub(crate) driver: &'static str,
}

impl Names {
    /// The names in place of what stands for them.
    pub(crate) fn expand(&self, text: &str) -> String {
        let text = text.replace("$IMG", &self.image).replace("$DIR", &self.dir);
        text.replace("$FMT", self.driver)
    }

    /// The lines of an output that are compared.
    pub(crate) fn lines(&self, output: &str) -> Vec<String> {
        let output = output.replace(&self.image, "IMG").replace(&self.dir, "DIR");
        let lines = output.lines().map(str::trim_end);
        lines.filter(|line| !line.is_empty() && !is_incidental(line)).map(undated).collect()
    }
}

/// Whether a line tells of times, of places in the host's files, or that nothing is wrong.
fn is_incidental(line: &str) -> bool {
    let figures = line.contains(" ops; ") && line.contains("/sec");
    let place =
        line.starts_with("Image end offset: ") || line.trim_start().starts_with("disk size: ");
    let is_well = line == "No errors were found on the image.";
    figures || place || is_well || line.contains("% allocated, ")
}

/// The line without the date and the time that lists of snapshots have.
fn undated(line: &str) -> String {
    let is_date = |word: &str| {
        let digits = word.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ':' | '.'));
        digits && (word.matches('-').count() == 2 || word.matches(':').count() == 2)
    };
    if !line.split_whitespace().any(is_date) {
        return line.to_owned();
    }
    let words: Vec<_> = line.split_whitespace().filter(|word| !is_date(word)).collect();
    words.join(" ")
}

/// What `map` shows of the JSON that block-img prints: a line for each range that is stored in one way,
/// wherever.
pub(crate) fn map(json: &str) -> Result<String, serde_json::Error> {
    let entries: Vec<Value> = serde_json::from_str(json)?;
    let mut shown: Vec<(u64, u64, String)> = Vec::new();
    for entry in &entries {
        let has = |name: &str| entry[name].as_bool() == Some(true);
        let number = |name: &str| entry[name].as_u64().unwrap_or_default();
        let mut kind = match (has("data"), has("zero"), has("present")) {
            (true, false, _) => "data".to_owned(),
            (true, true, _) => "data of zeroes".to_owned(),
            (false, true, true) => "zero".to_owned(),
            (false, true, false) => "hole".to_owned(),
            (false, false, _) => "nothing".to_owned(),
        };
        if has("compressed") {
            kind.push_str(" compressed");
        }
        if number("depth") > 0 {
            // Writing to a text does not fail.
            let _ = write!(kind, " in backing file {}", number("depth"));
        }
        let (start, len) = (number("start"), number("length"));
        match shown.last_mut() {
            Some((_, before, same)) if *same == kind => *before += len,
            _ => shown.push((start, len, kind)),
        }
    }
    let lines = shown.iter().map(|(start, len, kind)| format!("{start}+{len} {kind}\n"));
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_the_run_is_left_out() {
        let (image, dir) = ("/tmp/x/t.qcow2".to_owned(), "/tmp/x".to_owned());
        let names = Names { image, dir, driver: "qcow2" };
        let output = "wrote 1/1 bytes at offset 0\n1 bytes, 1 ops; 00:00:00.00 (1 KiB/sec)\n\
            image: /tmp/x/t.qcow2\nbacking: /tmp/x/b\n\ndisk size: 1 KiB\n\
            1   s   0 B 2026-01-02 03:04:05 00:00:00.000\n";
        let expected = ["wrote 1/1 bytes at offset 0", "image: IMG", "backing: DIR/b", "1 s 0 B"];
        assert_eq!(names.lines(output), expected);
        assert_eq!(names.expand("a $IMG -f $FMT $DIR/b"), "a /tmp/x/t.qcow2 -f qcow2 /tmp/x/b");
    }

    #[test]
    fn a_map_joins_what_is_alike() {
        let entry = |start: u64, data: bool, depth: u64| {
            format!(
                "{{\"start\": {start}, \"length\": 10, \"depth\": {depth}, \"present\": true, \
                 \"zero\": {}, \"data\": {data}, \"compressed\": false, \"offset\": {start}}}",
                !data
            )
        };
        let all = [entry(0, true, 0), entry(10, true, 0), entry(20, false, 0), entry(30, true, 1)];
        let shown = map(&format!("[{}]", all.join(","))).unwrap();
        assert_eq!(shown, "0+20 data\n20+10 zero\n30+10 data in backing file 1\n");
    }
}
