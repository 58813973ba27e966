//! What `info` says is what `qemu-img info` says, and looking at an image opens nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use block_core::info::InfoValue;
use block_core::options::OpenFlags;
use block_core::{Error, Options};
use block_testkit::peer::ImageDir;
use serde_json::{Map, Value, json};
use support::{open, open_with};

const NO_IO: OpenFlags = OpenFlags { no_io: true, ..OpenFlags::READ_ONLY };

fn json_of(value: &InfoValue) -> Value {
    match value {
        InfoValue::Bool(b) => json!(b),
        InfoValue::Int(n) => json!(n),
        InfoValue::Text(text) => json!(text),
        InfoValue::List(list) => list.iter().map(json_of).collect(),
        InfoValue::Map(map) => object(map),
    }
}

fn object(map: &[(&'static str, InfoValue)]) -> Value {
    let pairs = map.iter().map(|(name, value)| ((*name).to_owned(), json_of(value)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// The driver's answer beside the peer's, names in their order.
fn check(dir: &ImageDir, image: &str) {
    let text = dir.qemu_img(&["info", "--output", "json", image]).unwrap();
    let peer: Value = serde_json::from_str(&text).unwrap();
    let node = open_with(&dir.path(image), NO_IO, Options::new()).unwrap();
    let info = node.driver().info();
    let ours = object(&info.specific);
    let mut theirs = peer["format-specific"]["data"].clone();
    if let Some(encrypt) = theirs.get_mut("encrypt") {
        // Of the encryption only the kind is told yet.
        *encrypt = json!({"format": encrypt["format"]});
    }
    assert_eq!(ours.to_string(), theirs.to_string(), "{image}");
    assert_eq!(json!(info.cluster_size), peer["cluster-size"]);
    assert_eq!(json!(node.len()), peer["virtual-size"]);
    assert_eq!(json!(info.dirty), peer["dirty-flag"]);
    assert_eq!(json!(info.encrypted), *peer.get("encrypted").unwrap_or(&json!(false)));
    assert_eq!(json!(info.backing_filename), peer["backing-filename"]);
    assert_eq!(json!(info.backing_format), peer["backing-filename-format"]);
}

#[test]
fn it_agrees_with_the_peer() {
    let dir = ImageDir::new().unwrap();
    for (n, options) in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,lazy_refcounts=on,refcount_bits=64,cluster_size=2M",
        "compression_type=zstd,extended_l2=on",
        "data_file=data.raw,data_file_raw=on",
        "data_file=other.raw",
    ]
    .iter()
    .enumerate()
    {
        let image = format!("{n}.qcow2");
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, &image, "3M"]).unwrap();
        check(&dir, &image);
    }
    dir.qemu_img(&["bitmap", "--add", "-g", "4096", "1.qcow2", "one"]).unwrap();
    dir.qemu_img(&["bitmap", "--add", "--disable", "1.qcow2", "another one"]).unwrap();
    check(&dir, "1.qcow2");
    let args = ["create", "-q", "-f", "qcow2", "-b", "1.qcow2", "-F", "qcow2", "top.qcow2"];
    dir.qemu_img(&args).unwrap();
    check(&dir, "top.qcow2");
}

#[test]
fn encrypted_images_can_be_looked_at_and_not_read() {
    let dir = ImageDir::new().unwrap();
    for (image, format) in [("luks.qcow2", "luks"), ("aes.qcow2", "aes")] {
        let mut options = format!("encrypt.format={format},encrypt.key-secret=s");
        if format == "luks" {
            options += ",encrypt.iter-time=10";
        }
        let secret = ["create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o"];
        dir.qemu_img(&[&secret[..], &[&options, image, "1M"]].concat()).unwrap();
        check(&dir, image);
        let error = open(&dir.path(image)).unwrap_err().to_string();
        let expect = format!("{} encryption", format.to_uppercase());
        assert!(error.contains(&expect), "{error}");
        let node = open_with(&dir.path(image), NO_IO, Options::new()).unwrap();
        assert_eq!(support::read(&node, 0, 512), Err(Error::Unsupported));
    }
}

#[test]
fn looking_opens_neither_backing_file_nor_data_file() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"];
    dir.qemu_img(&[&args[..], &["top.qcow2"]].concat()).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "data.qcow2", "1M"];
    dir.qemu_img(&args).unwrap();
    for gone in ["base.qcow2", "d.raw"] {
        std::fs::remove_file(dir.path(gone)).unwrap();
    }
    for (image, missing) in [("top.qcow2", "backing file"), ("data.qcow2", "data file")] {
        let node = open_with(&dir.path(image), NO_IO, Options::new()).unwrap();
        assert_eq!(node.children().len(), 1, "{image}");
        let error = open(&dir.path(image)).unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
    }
}

#[test]
fn names_inside_an_image_are_plain_files() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "x.qcow2", "1M"]).unwrap();
    let json = r#"json:{"driver":"file","filename":"/etc/hostname"}"#;
    for name in [json, "nbd://localhost/x", "http://localhost/x"] {
        dir.qemu_img(&["rebase", "-u", "-b", name, "-F", "raw", "x.qcow2"]).unwrap();
        let error = open(&dir.path("x.qcow2")).unwrap_err().to_string();
        assert!(error.contains("only plain names are allowed"), "{error}");
        assert!(open_with(&dir.path("x.qcow2"), NO_IO, Options::new()).is_ok());
    }
}

#[test]
fn a_chain_that_bites_its_tail_ends_with_an_error() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "x.qcow2", "1M"]).unwrap();
    dir.qemu_img(&["rebase", "-u", "-b", "x.qcow2", "-F", "qcow2", "x.qcow2"]).unwrap();
    let error = open(&dir.path("x.qcow2")).unwrap_err().to_string();
    assert!(error.contains("the chain is longer than 200 images"), "{error}");
}

#[test]
fn options_that_mean_nothing_are_refused_by_name() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "x.qcow2", "1M"]).unwrap();
    let open = |name: &str, value: &str| {
        let options = Options::new().with(name, value);
        open_with(&dir.path("x.qcow2"), OpenFlags::READ_ONLY, options)
    };
    for (name, value) in [
        ("lazy-refcounts", "perhaps"),
        ("overlap-check", "some"),
        ("overlap-check.active-l1", "some"),
        ("refcount-cache-size", "x"),
        ("bogus", "1"),
        ("l2-cache-entry-size", "100"),
        ("l2-cache-entry-size", "1M"),
        ("l2-cache-size", "x"),
        ("data-file.filename", "x"),
        ("encrypt.key-secret", "s"),
    ] {
        let error = open(name, value).unwrap_err().to_string();
        let name = name.trim_end_matches(".filename");
        assert!(error.contains(name), "{name}: {error}");
    }
    for (name, value) in [("l2-cache-size", "64k"), ("cache-size", "1M"), ("backing", "")] {
        assert!(open(name, value).is_ok(), "{name}");
    }
}
