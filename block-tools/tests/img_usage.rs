//! How command lines of `block-img` are understood, in this process: what is refused, what is said, and
//! that nothing is done then.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use block_core::{OpenFlags, graph};
use block_tools::img::{self, Output};
use block_tools::open::{ImageSpec, block_on, drivers, open};
use block_tools::surroundings::{Messages, Surroundings, enter};
use tempfile::TempDir;

/// A directory of images, in which commands are run.
struct Images(TempDir);

/// What became of a command.
#[derive(Debug)]
struct Ended {
    status: u8,
    out: String,
    said: String,
}

impl Images {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs words in which `@NAME` is the path of an image, and `''` no text at all.
    fn run(&self, line: &str) -> Ended {
        let word = |word: &str| match word {
            "''" => OsString::new(),
            word => OsString::from(word.replace('@', &format!("{}/", self.0.path().display()))),
        };
        let args = ["block-img"].into_iter().chain(line.split(' ')).map(word);
        let said = Arc::new(Mutex::new(String::new()));
        let ear = Arc::clone(&said);
        let messages: Messages = Arc::new(move |text| {
            let mut said = ear.lock().unwrap();
            said.push_str(text);
            said.push('\n');
        });
        let _guard = enter(Surroundings { registry: Arc::new(drivers()), messages });
        let mut out = Output::buffer();
        let status = img::main(args, &mut out);
        let said = said.lock().unwrap().clone();
        Ended { status, out: out.text(), said }
    }

    /// Runs what must succeed; what it printed.
    fn succeed(&self, line: &str) -> String {
        let ended = self.run(line);
        assert_eq!(ended.status, 0, "{line}: {ended:?}");
        ended.out
    }

    /// Runs what must fail with status 1, saying `what`.
    fn fail(&self, line: &str, what: &str) {
        let ended = self.run(line);
        assert_eq!(ended.status, 1, "{line}: {ended:?}");
        assert!(ended.said.contains(what), "{line}: {ended:?}");
    }
}

#[test]
fn an_overlay_is_made_over_an_image_in_use() {
    let images = Images::new();
    images.succeed("create -q -f qcow2 @base 3M");
    let spec = ImageSpec { flags: OpenFlags::READ_WRITE, ..ImageSpec::new(images.path("base")) };
    let node = block_on(open(&spec)).unwrap();
    let out = images.succeed("create -f qcow2 -b @base -F qcow2 @top");
    assert!(out.contains("size=3145728"), "{out}");
    images.fail("create -q -f qcow2 @base 1M", "lock");
    block_on(graph::close(&node)).unwrap();
}

#[test]
fn options_of_resize_stand_anywhere() {
    for (words, len) in [
        ("@a +1M -q", 5 << 20),
        ("@a -q +1M", 5 << 20),
        ("@a 6M --shrink", 6 << 20),
        ("--shrink @a -- -1M", 3 << 20),
        ("--shrink @a -1M", 3 << 20),
        ("@a --shrink -256k", (4 << 20) - (256 << 10)),
    ] {
        let images = Images::new();
        images.succeed("create -q -f raw @a 4M");
        images.succeed(&format!("resize -f raw {words}"));
        assert_eq!(std::fs::metadata(images.path("a")).unwrap().len(), len, "{words}");
    }
    let images = Images::new();
    images.succeed("create -q -f raw @a 4M");
    images.fail("resize -f raw @a -- -1M", "Use the --shrink option");
    images.fail("resize -f raw @a -q", "Expecting image file name and size");
    images.fail("resize -f raw @a -1M @b", "unexpected argument '-1'");
}

#[test]
fn one_thing_is_done_to_snapshots_at_a_time() {
    let images = Images::new();
    images.succeed("create -q -f qcow2 @a 1M");
    images.succeed("snapshot -c s1 @a");
    images.succeed("snapshot -c s2 @a");
    let before = images.succeed("snapshot -l @a");
    for words in ["-d s1 -d s2", "-c x -c y", "-a s1 -a s2", "-l -l", "-l -d s1", "-c x -d s1"] {
        let line = format!("snapshot {words} @a");
        images.fail(&line, "Cannot mix '-l', '-a', '-c', '-d'");
        assert_eq!(images.succeed("snapshot -l @a"), before, "{words}");
    }
    assert_eq!(images.succeed("snapshot @a"), before);
}

#[test]
fn lists_of_options_need_no_images() {
    let images = Images::new();
    let create = images.succeed("create -f qcow2 -o help");
    assert!(create.contains("  cluster_size=<size>"), "{create}");
    assert_eq!(images.succeed("convert -O qcow2 -o help"), create);
    let with_protocol = images.succeed("convert -O raw -o help @missing @target");
    assert!(with_protocol.contains("  nocow=<"), "{with_protocol}");
    assert_eq!(with_protocol, images.succeed("create -f raw -o help @target"));
    let amend = images.succeed("amend -f qcow2 -o help");
    assert!(amend.starts_with("Amend options for 'qcow2':\n  backing_file=<str>"), "{amend}");
    assert!(amend.contains("  size=<size>") && !amend.contains("cluster_size"), "{amend}");
    assert_eq!(images.succeed("amend -f qcow2 -o help @missing"), amend);
    images.succeed("create -q -f qcow2 @a 1M");
    assert_eq!(images.succeed("amend -o help @a"), amend);
    images.fail("amend -o help", "Expecting one image file name");
    images.fail("amend -f raw -o help", "Format driver 'raw' does not support option amendment");
    images.fail("convert -O bogus -o help", "Unknown file format 'bogus'");
    assert!(!std::fs::exists(images.path("target")).unwrap());
}

/// The longest chain that opens is shown whole; one more is refused for what it is.
#[test]
fn a_long_chain_is_no_loop() {
    let images = Images::new();
    images.succeed("create -q -f qcow2 -u -b b000 -F qcow2 @template 1M");
    let template = std::fs::read(images.path("template")).unwrap();
    let at = template.windows(4).position(|bytes| bytes == b"b000").unwrap();
    for n in 1..=201 {
        let mut bytes = template.clone();
        bytes[at..at + 4].copy_from_slice(format!("b{:03}", n - 1).as_bytes());
        std::fs::write(images.path(&format!("b{n:03}")), bytes).unwrap();
    }
    images.succeed("create -q -f qcow2 @b000 1M");
    let shown = images.succeed("info --backing-chain @b200");
    assert_eq!(shown.matches("image: ").count(), 201);
    images.fail("info --backing-chain @b201", "is longer than 200 images");
    std::fs::copy(images.path("b001"), images.path("b000")).unwrap();
    images.fail("info --backing-chain @b002", "creates an infinite loop");
}

#[test]
fn a_backing_file_is_not_amended() {
    let images = Images::new();
    images.succeed("create -q -f raw @base 1M");
    images.succeed("create -q -f raw @other 1M");
    images.succeed("create -q -f qcow2 -b @base -F raw @a");
    let before = std::fs::read(images.path("a")).unwrap();
    for options in [
        "backing_file=@other",
        "backing_file=@other,backing_fmt=raw",
        "backing_file=",
        "backing_fmt=qcow2",
        "size=2M,backing_file=@other",
    ] {
        let line = format!("amend -o {options} @a");
        images
            .fail(&line, "Cannot amend the backing file\nYou can use 'block-img rebase' instead.");
        assert!(std::fs::read(images.path("a")).unwrap() == before, "{options}");
    }
    images.succeed("amend -o backing_file=@base,backing_fmt=raw,size=2M @a");
    images.succeed("create -q -f qcow2 @alone 1M");
    images.succeed("amend -o backing_file= @alone");
    images.fail("amend -o backing_file=@base @alone", "Cannot amend the backing file");
}

#[test]
fn what_would_have_no_effect_is_refused() {
    let images = Images::new();
    images.succeed("create -q -f qcow2 @a 1M");
    for words in ["-l s", "-f qcow2", "--image-opts"] {
        let line = format!("measure {words} --size 1M");
        images.fail(&line, "--image-opts, -f, and -l require a filename argument.");
    }
    let shared = "force-share=on can only be used with read-only images";
    images.fail("bench -w -U -c 1 @a", shared);
    images.fail("snapshot -U -c s @a", shared);
    images.succeed("bench -U -c 1 @a");
    for line in [
        "create -q -f qcow2 -o '' @b 1M",
        "create -q -f qcow2 -o cluster_size=4k -o '' @b 1M",
        "create -q -f qcow2 -o cluster_size=4k, @b 1M",
        "create -q -f qcow2 -o ,cluster_size=4k @b 1M",
        "convert -o '' @a @b",
        "amend -o '' @a",
        "measure -o '' --size 1M",
    ] {
        images.fail(line, "Invalid option list: ");
    }
    assert!(!std::fs::exists(images.path("b")).unwrap());
}

#[test]
fn a_boolean_option_is_off_behind_no() {
    let images = Images::new();
    images.succeed("create -q -f qcow2 -o lazy_refcounts,nolazy_refcounts,nocow @a 1M");
    assert!(images.succeed("info @a").contains("lazy refcounts: false"));
    images.succeed("amend -o lazy_refcounts @a");
    assert!(images.succeed("info @a").contains("lazy refcounts: true"));
    images.succeed("convert -O qcow2 -o lazy_refcounts=on,nolazy_refcounts @a @b");
    assert!(images.succeed("info @b").contains("lazy refcounts: false"));
    images.fail("create -q -f qcow2 -o nobogus @a 1M", "Invalid parameter 'nobogus'");
}

#[test]
fn the_verdict_is_the_last_line() {
    let images = Images::new();
    images.succeed("create -q -f raw @a 4M");
    images.succeed("create -q -f raw @b 4M");
    let out = images.succeed("compare -p -f raw -F raw @a @b");
    assert!(out.ends_with("\r\nImages are identical.\n"), "{out:?}");
    std::fs::write(images.path("b"), [1; 512]).unwrap();
    let ended = images.run("compare -p -f raw -F raw @a @b");
    assert_eq!(ended.status, 1);
    assert!(ended.out.ends_with("\nContent mismatch at offset 0!\n"), "{ended:?}");
    assert!(images.run("compare -q -p -f raw -F raw @a @b").out.is_empty());
}

#[test]
fn the_part_of_a_map_has_short_options() {
    let images = Images::new();
    images.succeed("create -q -f raw @a 4M");
    let long = images.succeed("map -f raw --output json --start-offset 1M --max-length 1M @a");
    assert_eq!(images.succeed("map -f raw --output json -s 1M -l 1M @a"), long);
    assert!(long.contains("\"start\": 1048576, \"length\": 1048576"), "{long}");
}

#[test]
fn secrets_and_trace_points_are_taken_by_every_command() {
    let images = Images::new();
    images.succeed("create -q -f raw @a 4M");
    let named = "info --image-opts driver=null-co,password-secret=s";
    images.fail(named, "there is no secret of the name 's'");
    images.fail(&format!("{named} --object secret,id=s,data=x"), "'password'");
    images.fail(&format!("--object secret,id=s,data=x {named}"), "'password'");
    images.fail(named, "there is no secret of the name 's'");
    images.fail("compare --object bogus,id=s @a @a", "no objects of the type 'bogus'");
    images.succeed("-T trace info -f raw @a");
    images.succeed("--trace trace resize -f raw --shrink @a -1M");
}

#[test]
fn long_options_may_be_short() {
    let images = Images::new();
    images.succeed("create -q -f raw @a 4M");
    images.succeed("info --form raw --backing --out json @a");
    images.fail("convert --target-i @a @b", "unexpected argument '--target-i'");
}

#[test]
fn options_of_convert_have_both_of_their_long_names() {
    let images = Images::new();
    images.succeed("create -q -f qcow2 @a 1M");
    images.succeed("snapshot -c s @a");
    for names in [
        "--output-format qcow2 --options cluster_size=4k --snapshot s",
        "--target-format qcow2 --target-options cluster_size=4k --source-snapshot s",
    ] {
        images.succeed(&format!("convert {names} @a @b"));
        assert!(images.succeed("info @b").contains("cluster_size: 4096"), "{names}");
    }
    images.fail("convert --snapshot missing @a @b", "Can't find snapshot");
    images.succeed("convert --copy-range-offloading @a @b");
    images.fail("convert --copy-range-offloading -S 4k @a @b", "copy offloading when -S is used");
}

/// The name that is shown opens the same disk, and no more of the file.
#[test]
fn the_name_of_a_part_of_a_file_says_which() {
    let images = Images::new();
    std::fs::write(images.path("a"), [[1; 512], [2; 512], [3; 512], [4; 512]].concat()).unwrap();
    let part = "driver=raw,offset=512,size=1024,read-only=on,file.filename=@a";
    let shown = images.succeed(&format!("info --image-opts {part}"));
    let name = shown.lines().next().unwrap().strip_prefix("image: ").unwrap().to_owned();
    assert!(name.starts_with("json:{") && !name.contains("read-only"), "{name}");
    assert!(images.succeed(&format!("info {name}")).starts_with(&format!("image: {name}\n")));
    images.succeed(&format!("convert -O raw {name} @part"));
    assert_eq!(std::fs::read(images.path("part")).unwrap(), [[2; 512], [3; 512]].concat());
    let json = images.succeed(&format!("info --output json --image-opts {part}"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["filename"], name.as_str());
    assert_eq!(json["children"][0]["info"]["filename"], images.path("a").as_str());
    let whole = images.succeed("info --image-opts driver=raw,discard=unmap,file.filename=@a");
    assert!(whole.starts_with(&format!("image: {}\n", images.path("a"))), "{whole}");
}

#[test]
fn refusals_say_what_is_wrong() {
    let images = Images::new();
    let create = "create -q -f qcow2";
    images.fail(
        &format!("{create} -o encryption=on @a 1M"),
        "encryption is not supported by 'qcow2'",
    );
    images.fail(
        &format!("{create} -o preallocation=bogus @a 1M"),
        "Parameter 'preallocation' does not accept value 'bogus'",
    );
    images.fail(
        "create -q -f raw -o preallocation=bogus @a 1M",
        "Parameter 'preallocation' does not accept value 'bogus'",
    );
    images.fail(
        &format!("{create} -o compat=2 @a 1M"),
        "Parameter 'compat' does not accept value '2'",
    );
    images.succeed(&format!("{create} -o compat=0.10 @old 1M"));
    images.succeed("snapshot -c s @old");
    images.fail("resize @old 2M", "version 2 (compat=0.10) that has snapshots");
    images.succeed(&format!("{create} @marked 1M"));
    images.succeed("snapshot -c s @marked");
    images.succeed("bitmap --add @marked b");
    images.fail("snapshot -a s @marked", "the image has persistent bitmaps");
    images.fail("create -q -f raw /dev/null 1M", "Cannot grow device files");
    images.fail("convert -f raw -O raw @old /dev/null", "Cannot grow device files");
}

#[test]
fn a_backing_name_that_is_no_text_is_called_that() {
    let images = Images::new();
    images.succeed("create -q -f qcow2 -u -b b000 -F raw @a 1M");
    let mut bytes = std::fs::read(images.path("a")).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == b"b000").unwrap();
    bytes[at + 1] = 0xff;
    std::fs::write(images.path("a"), bytes).unwrap();
    images.fail("map @a", "backing file name is not valid text (UTF-8)");
}

#[test]
fn an_image_that_could_not_be_made_leaves_nothing() {
    // What fails after a file was made, and a file that may be there before.
    for (line, also) in [
        ("create -q -f qcow2 -o data_file=missing/d @a 1M", "b"),
        ("create -q -f qcow2 -o data_file=missing/d @a 1M", "a"),
        ("create -q -f vmdk -o subformat=monolithicFlat @a.vmdk 1M", "a.vmdk"),
        ("create -q -f vmdk -o subformat=twoGbMaxExtentFlat @a.vmdk 3G", "a-f001.vmdk"),
    ] {
        for before in [None, Some(also)] {
            let images = Images::new();
            std::fs::create_dir(images.path("a-flat.vmdk")).unwrap();
            std::fs::create_dir(images.path("a-f002.vmdk")).unwrap();
            if let Some(name) = before {
                std::fs::write(images.path(name), [7; 4096]).unwrap();
            }
            images.fail(line, "");
            for entry in std::fs::read_dir(images.0.path()).unwrap() {
                let entry = entry.unwrap();
                if entry.metadata().unwrap().is_dir() {
                    continue;
                }
                let name = entry.file_name();
                assert_eq!(name.to_str(), before, "{line}");
                let untouched = name == "b";
                let len = if untouched { 4096 } else { 0 };
                assert_eq!(entry.metadata().unwrap().len(), len, "{line}");
            }
        }
    }
}
