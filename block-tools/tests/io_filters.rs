//! The filters and protocols for tests, `blkdebug`, `blkverify`, `null-co` and copy on read, in `block-io`
//! beside `qemu-io`: the same standard output and exit status.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod io_support;

use std::path::Path;

use io_support::{both, chain, check, check_written, feed, raw, tool};

/// How the scripts of the field open images: changed tables are written when something flushes.
const WRITEBACK: [&str; 2] = ["-t", "writeback"];

/// A raw image, a chain, and configurations.
fn debugged(dir: &Path) {
    raw(dir);
    chain(dir);
    let rule = |event: &str, more: &str| format!("[inject-error]\nevent = \"{event}\"\n{more}");
    let configs = [
        ("once", rule("write_aio", "errno = \"28\"\nonce = \"on\"\n")),
        ("sector", rule("read_aio", "sector = \"8\"\nimmediately = \"on\"\n")),
        (
            "states",
            format!(
                "# comment\n[set-state]\nstate = \"1\"\nevent = \"write_aio\"\nnew_state = \"2\"\n\n{}",
                rule("write_aio", "state = \"2\"\nerrno = \"5\"\n")
            ),
        ),
        ("zeroes", rule("none", "iotype = \"write-zeroes\"\nerrno = \"95\"\n")),
        ("flush", rule("flush_to_disk", "errno = \"28\"\n")),
        ("bad", rule("bogus", "")),
        ("section", "[bogus]\n".to_owned()),
        ("alloc", rule("cluster_alloc", "errno = \"28\"\nonce = \"on\"\n")),
        ("backing", rule("read_backing_aio", "errno = \"5\"\nonce = \"on\"\n")),
        ("cow", rule("cow_read", "errno = \"5\"\nonce = \"on\"\n")),
        ("rmw", rule("pwritev_rmw_after_tail", "errno = \"5\"\nonce = \"on\"\n")),
        ("l2", rule("l2_update", "errno = \"5\"\nimmediately = \"on\"\n")),
    ];
    for (name, text) in configs {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

/// The lines of a script as `-c` options: no prompt stands among what is printed, whose place depends on when
/// a request in flight comes where.
fn commands(script: &str) -> Vec<&str> {
    script.lines().flat_map(|line| ["-c", line]).collect()
}

fn check_on_raw(config: &str, script: &str) {
    let name = format!("blkdebug:{config}:a.raw");
    check(debugged, &[&WRITEBACK[..], &["-f", "raw", &name]].concat(), script);
}

#[test]
fn rules_fail_the_same_requests() {
    check_on_raw("once", "write 0 4k\nwrite 0 4k\nread 0 4k\nwrite 512 100\n");
    check_on_raw("sector", "read 0 4k\nread 0 8k\nread 4095 1\nread 4096 1\nread 4608 1\nmap\n");
    check_on_raw("states", "write 0 4k\nwrite 0 4k\nread 0 4k\nwrite 0 4k\nlength\n");
    check_on_raw("zeroes", "write 0 4k\nwrite -z -n 0 64k\nread 0 4k\n");
    check_on_raw("flush", "write 0 4k\nflush\n");
    check_on_raw("", "write -P 3 0 4k\nread -P 3 0 4k\nmap\ndiscard 0 4k\ntruncate 512k\nlength\n");
    for name in ["bad", "section", "nothing"] {
        check_on_raw(name, "length\n");
    }
    check(debugged, &["-f", "raw", "blkdebug:a.raw"], "length\n");
}

#[test]
fn rules_come_as_options_too() {
    let options = "driver=raw,file.driver=blkdebug,file.image.filename=a.raw,";
    for (rest, script) in [
        (
            "file.inject-error.0.event=write_aio,file.inject-error.0.once=on",
            "write 0 1k\nwrite 0 1k\n",
        ),
        ("file.inject-error.0.event=none,file.inject-error.0.sector=2", "read 0 1k\nread 1k 1\n"),
        ("file.inject-error.0.event=none,file.inject-error.0.iotype=block-status", "read 0 1\n"),
        (
            "file.set-state.0.event=read_aio,file.set-state.0.new_state=3,\
             file.inject-error.0.event=write_aio,file.inject-error.0.state=3",
            "write 0 1k\nread 0 1k\nwrite 0 1k\n",
        ),
        ("file.inject-error.0.event=bogus", "length\n"),
        ("file.inject-error.0.errno=5", "length\n"),
        ("file.bogus=5", "length\n"),
        ("file.align=3", "length\n"),
        ("file.align=4k", "write -P 3 5 7000\nread -P 3 5 7000\nread -P 0 7005 100\n"),
        ("file.align=4k,file.max-transfer=8k", "write -P 3 5 70000\nread -P 3 5 70000\n"),
        ("file.align=4k,file.max-transfer=6k", "length\n"),
        (
            "file.opt-write-zero=16k,file.max-write-zero=32k",
            "write 0 1M\nwrite -z 100 900k\nread -P 0 100 900k\n",
        ),
    ] {
        let all = format!("{options}{rest}");
        check(debugged, &[&WRITEBACK[..], &["--image-opts", &all]].concat(), script);
    }
    let json = "json:{'driver':'raw','file':{'driver':'blkdebug','image':{'driver':'file',\
        'filename':'a.raw'},'inject-error':[{'event':'write_aio','errno':28,'once':true}]}}";
    check(debugged, &[&WRITEBACK[..], &[json]].concat(), "write 0 1k\nwrite 0 1k\n");
    let config = "driver=blkdebug,image.driver=file,image.filename=a.raw,config=once";
    check(debugged, &["--image-opts", config], "length\nread 0 1k\n");
}

#[test]
fn breakpoints_hold_and_release_alike() {
    let on_raw = |script: &str| {
        let args = [&WRITEBACK[..], &["-f", "raw"], &commands(script), &["blkdebug::a.raw"]];
        check(debugged, &args.concat(), "");
    };
    on_raw(
        "break write_aio A\naio_write -P 5 0 4k\nwait_break A\nread -P 0 0 4k\nresume A\naio_flush\n\
         read -P 5 0 4k\nbreak bogus A\nbreak write_aio A\nremove_break A\nremove_break A\nresume A\n\
         resume\nbreak write_aio\nwait_break\nremove_break\nwrite 0 1k\nbreak read_aio B\n\
         aio_read 0 1k\nwait_break B\nwrite 4k 4k\nremove_break B\naio_flush\nread 0 1k\n",
    );
    check(debugged, &["-f", "raw", "a.raw"], "break write_aio A\nresume A\nremove_break A\n");
    for point in ["pwritev", "pwritev_done"] {
        on_raw(&format!("break {point} A\naio_write 0 4k\nwait_break A\nresume A\naio_flush\n"));
    }
}

#[test]
fn what_is_held_up_holds_up_nobody_else() {
    // The second write overlaps both others and waits for the first; the third does not wait for it.
    let start = "break pwritev_rmw_after_tail A\naio_write -P 10 0xa000 0x200\nwait_break A\n\
        aio_write -P 11 0xa800 0x1000\nbreak pwritev_rmw_after_head B\n\
        aio_write -P 12 0xbe00 0x200\nwait_break B\n";
    let verify = "aio_flush\nread -P 10 0xa000 0x200\nread -P 0 0xa200 0x600\nread -P 11 0xa800 0x1000\n\
        read -P 0 0xb800 0x600\nread -P 12 0xbe00 0x200\n";
    for order in ["resume A\nsleep 50\nresume B\n", "resume B\nsleep 50\nresume A\n"] {
        let script = [start, order, verify].concat();
        let options = "driver=raw,file.driver=blkdebug,file.align=4k,file.image.filename=a.raw";
        let image = ["--image-opts", options];
        check(debugged, &[&WRITEBACK[..], &commands(&script), &image].concat(), "");
    }
}

#[test]
fn a_qcow2_image_comes_by_the_same_points() {
    let on_top = |config: &str, script: &str| {
        let name = format!("blkdebug:{config}:top.qcow2");
        let args = [&WRITEBACK[..], &["-f", "qcow2"], &commands(script), &[&name]].concat();
        check_written(debugged, &args, "", &["top.qcow2"]);
    };
    on_top("alloc", "write -P 5 2M 64k\nwrite -P 6 2M 64k\nread -P 6 2M 64k\n");
    on_top("backing", "read 0 64k\nread -P 1 0 64k\n");
    on_top("cow", "write -P 5 1k 1k\nwrite -P 6 1k 1k\nread -P 6 1k 1k\nread -P 1 2k 62k\n");
    on_top("once", "write -P 5 64k 1k\nwrite -P 6 64k 1k\nread -P 6 64k 1k\nread -P 3 65k 63k\n");
    // A write to a cluster without a place is held in the middle; reads show the old contents.
    for event in ["cow_read", "write_aio"] {
        on_top(
            "",
            &format!(
                "break {event} A\naio_write -P 5 1k 1k\nwait_break A\nread -P 1 0 4k\nresume A\n\
                 aio_flush\nread -P 5 1k 1k\nread -P 1 2k 62k\n"
            ),
        );
    }
    on_top("", "break read_aio A\naio_read -P 3 64k 64k\nwait_break A\nresume A\naio_flush\n");
    on_top("", "break l2_load A\naio_read -P 3 64k 64k\nwait_break A\nresume A\naio_flush\n");
}

#[test]
fn zero_writes_that_change_nothing_write_no_table() {
    for (script, status) in
        [("write -z -u 1M 64k\nwrite -z 1M 512k\n", Some(0)), ("write -z 2M 64k\nflush\n", Some(1))]
    {
        let args = [&WRITEBACK[..], &["-f", "qcow2"], &commands(script)].concat();
        let (_, ours) = both(debugged, &[&args[..], &["blkdebug:l2:top.qcow2"]].concat(), "");
        assert_eq!(ours.status, status, "{script:?}: {}", ours.stderr);
    }
    let name = "blkdebug:l2:top.qcow2";
    check(debugged, &["-f", "qcow2", "-c", "write -z -u 1M 64k", name], "");
}

#[test]
fn discards_go_to_the_ends_of_a_request_alike() {
    let options = "driver=blkdebug,image.driver=qcow2,image.file.driver=file,\
        image.file.filename=base.qcow2,align=512,opt-discard=192k,max-discard=192k";
    let script = "write -P 5 0 2M\ndiscard 70001 600k\nread -P 5 0 128k\nread -P 0 128k 512k\n\
        read -P 5 704k 1344k\n";
    check_written(debugged, &["--image-opts", options], script, &["base.qcow2"]);
}

#[test]
fn two_images_are_compared_alike() {
    let two = |dir: &Path| {
        raw(dir);
        let mut other = vec![0; 1 << 20];
        other[5000] = 1;
        std::fs::write(dir.join("b.raw"), other).unwrap();
    };
    let script = "read 0 4k\nwrite -P 3 64k 64k\nread -P 3 64k 64k\nlength\nmap\n";
    for script in [script, "read 0 4k\nread 4k 8k\nlength\n", "read 5000 1\nlength\n"] {
        check(two, &["-f", "raw", "blkverify:a.raw:b.raw"], script);
    }
    let options = "driver=blkverify,raw.filename=a.raw,test.driver=raw,test.file.filename=b.raw";
    check(two, &["--image-opts", options], "read 0 4k\nread 4k 4k\nlength\n");
    check(two, &["-f", "raw", "-c", "read 4k 8k", "-c", "length", "blkverify:a.raw:b.raw"], "");
    check(two, &["-f", "raw", "blkverify:a.raw"], "length\n");
    check(two, &["--image-opts", "driver=blkverify,raw.filename=a.raw"], "length\n");
}

#[test]
fn disks_of_nothing_open_alike() {
    for name in ["null-co://", "null-aio://", "null-co://x", "null-co:"] {
        check(raw, &["-f", "raw", name], "length\nwrite 0 4k\nread 0 4k\n");
    }
    let options = "driver=null-co,size=3M,read-zeroes=on,latency-ns=1000000";
    check(raw, &["--image-opts", options], "length\nread -P 0 0 4k\nwrite 0 4k\nread -P 0 1M 4k\n");
    check(raw, &["--image-opts", "driver=null-aio,size=1M"], "length\nread -v 0 16\n");
    check(raw, &["--image-opts", "driver=null-aio,bogus=1M"], "length\n");
}

#[test]
fn what_is_read_from_a_backing_file_is_copied_alike() {
    let script = "map\nread -P 1 0 512\nread -P 2 1M 0\nread -P 0 128k 64k\nread -P 3 64k 64k\nmap\n\
        write -P 9 200k 1k\nread -P 0 201k 1k\nlength\nread -P 1 1k 1k\nalloc 0 4M\n";
    check_written(chain, &["-C", "top.qcow2"], script, &["top.qcow2", "base.qcow2"]);
    let script = "open -C top.qcow2\nread -P 1 0 512\nclose\nopen top.qcow2\nalloc 0 64k\nmap\n";
    check_written(chain, &[], script, &["top.qcow2", "base.qcow2"]);
    let options = "driver=copy-on-read,file.driver=qcow2,file.file.driver=file,\
        file.file.filename=top.qcow2";
    let script = "read -P 1 0 512\nread -P 0 3000k 64k\nlength\n";
    check_written(chain, &["--image-opts", options], script, &["top.qcow2", "base.qcow2"]);
    check(chain, &["-C", "-r", "top.qcow2"], "length\n");
    check(chain, &["-r", "--image-opts", options], "length\n");
}

#[test]
fn copies_on_read_are_of_subclusters() {
    let subclusters = |dir: &Path| {
        chain(dir);
        let new = ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", "base.qcow2"];
        let new = [&new[..], &["-F", "qcow2", "top.qcow2"]].concat();
        let made = feed(tool("QEMU_IMG", "qemu-img"), dir, &new, "", "qemu-img");
        assert!(made.status.success(), "{made:?}");
    };
    let script = "write -P 11 28k 2k\nwrite -P 12 34k 2k\nmap\nread -P 1 30k 4k\nmap\n\
        read -P 1 1k 100\nmap\n";
    check_written(subclusters, &["-C", "top.qcow2"], script, &["top.qcow2", "base.qcow2"]);
}

#[test]
fn a_data_file_may_be_any_node_that_the_user_names() {
    let external = |dir: &Path| {
        let new = ["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "d.qcow2", "1M"];
        let made = feed(tool("QEMU_IMG", "qemu-img"), dir, &new, "", "qemu-img");
        assert!(made.status.success(), "{made:?}");
    };
    let json = "json:{'driver':'qcow2','file':{'filename':'d.qcow2'},\
        'data-file':{'driver':'null-co','size':1048576,'read-zeroes':true}}";
    check(external, &[json], "length\nwrite -P 5 0 64k\nread -P 0 0 64k\nmap\n");
}

#[test]
fn only_what_can_be_written_is_copied_to() {
    check(chain, &["-C", "-r", "-c", "length", "top.qcow2"], "");
    check(chain, &[], "open -C -r top.qcow2\nlength\n");
    let filter = "driver=copy-on-read,file.driver=qcow2,file.file.filename=top.qcow2";
    check(chain, &["-r", "--image-opts", filter, "-c", "length"], "");
}

#[test]
fn subclusters_are_copied_by_themselves() {
    let extended = |dir: &Path| {
        let img = |args: &[&str]| {
            let output = feed(tool("QEMU_IMG", "qemu-img"), dir, args, "", "qemu-img");
            assert!(output.status.success(), "{output:?}");
        };
        std::fs::write(dir.join("base.raw"), vec![0xaa; 64 << 10]).unwrap();
        let options = ["-o", "extended_l2=on", "-b", "base.raw", "-F", "raw", "top.qcow2"];
        img(&[&["create", "-q", "-f", "qcow2"], &options[..]].concat());
    };
    let script = "write -P 0xbb 28k 2k\nwrite -P 0xcc 34k 2k\nread -P 0xaa 30k 4k\nmap\n";
    let options = "driver=qcow2,file.driver=file,file.filename=top.qcow2";
    for image in [["-f", "qcow2", "top.qcow2"], ["-m", "--image-opts", options]] {
        check_written(extended, &[&["-C"], &image[..]].concat(), script, &["top.qcow2"]);
    }
}

#[test]
fn signals_end_the_program_alike() {
    for command in
        ["sigraise 15", "sigraise 9", "sigraise 0", "sigraise 999", "sigraise x", "abort"]
    {
        check(raw, &["-f", "raw", "-c", "length", "-c", command, "-c", "length", "a.raw"], "");
    }
    check(raw, &["-f", "raw", "a.raw"], "sigraise\nabort 1\nsigraise 1 2\n");
}
