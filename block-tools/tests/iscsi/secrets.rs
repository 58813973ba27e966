//! No password is told: not in what a command prints, not in what it complains of, not in an image.

use block_testkit::iscsi::target::{Account, Admission};

use super::{BLOCK_IMG, BLOCK_IO, NAME, Place, thick, thin};

const SECRET: &str = "hunter2-and-more";
const WRONG: &str = "hunter2-but-wrong";
/// What all secrets here have in common.
const TELLTALE: &str = "hunter2";

fn guarded() -> Place {
    Place::with(&[thick(8), thin(8)], |config| {
        config.admission = Admission::Chap(vec![Account::new("joe", SECRET)]);
    })
}

/// Runs a command and looks at everything that it says.
fn said(place: &Place, program: &str, args: &[&str], status: i32) -> String {
    let ended = place.run_with(program, &[], args);
    let said = format!("{}{}", ended.out, ended.err);
    assert!(!said.contains(TELLTALE), "{args:?}: {said}");
    assert_eq!(ended.status, status, "{args:?}: {said}");
    said
}

#[test]
fn no_command_tells_a_password() {
    let place = guarded();
    let [zero, one] = [0, 1].map(|lun| place.url_as(&format!("joe%{SECRET}@"), lun));
    let portal = format!("iscsi://joe%{SECRET}@{}", place.server.addr());
    let addr = place.server.addr();
    let opts = format!(
        "driver=raw,file.driver=iscsi,file.portal={addr},file.target={NAME},file.user=joe,\
         file.password={SECRET}"
    );
    let json = format!("json:{{'driver':'raw','file':{{'driver':'iscsi','filename':'{one}'}}}}");
    let over = format!("json:{{'driver':'qcow2','file':{{'driver':'iscsi','filename':'{one}'}}}}");
    place.dir.write("disk.raw", &[7; 1 << 20]).unwrap();

    // What each command says, and whether it has to name the unit.
    for args in [
        &["create", "-f", "raw", &zero, "1M"][..],
        &["create", "-f", "qcow2", "-u", "-F", "raw", "-b", &zero, "over.qcow2", "1M"],
        &["create", "-f", "qcow2", "-u", "-F", "raw", "-b", &zero, &one, "1M"],
        &["info", &zero],
        &["info", "--output", "json", &zero],
        &["info", "over.qcow2"],
        &["info", "--output", "json", "over.qcow2"],
        &["info", "--backing-chain", &zero],
        &["info", "--backing-chain", "--output", "json", &zero],
        &["info", &json],
        &["info", &over],
        &["info", &one],
        &["info", "--output", "json", &one],
        &["check", "--output", "json", "-f", "qcow2", &one],
    ] {
        let said = said(&place, BLOCK_IMG, args, 0);
        assert!(said.contains("iscsi://joe@"), "{args:?}: {said}");
    }
    for args in [
        &["convert", "-p", "-f", "raw", "-O", "raw", "disk.raw", &zero][..],
        &["convert", "-p", "-n", "-f", "raw", "-O", "raw", "disk.raw", &zero],
        &["convert", "-p", "-f", "raw", "-O", "qcow2", &zero, "copy.qcow2"],
        &["convert", "-f", "raw", "-O", "vmdk", "disk.raw", &one],
        &["info", &one],
        &["convert", "-f", "raw", "-O", "qcow2", "disk.raw", &one],
        &["info", "--image-opts", &opts],
        &["map", "-f", "raw", &zero],
        &["map", "--output", "json", "-f", "qcow2", &one],
        &["compare", "-f", "qcow2", "-F", "qcow2", "copy.qcow2", "copy.qcow2"],
        &["measure", "-f", "raw", "-O", "qcow2", &zero],
        &["bench", "-c", "4", "-f", "raw", &zero],
        &["snapshot", "-c", "s", &one],
        &["snapshot", "-l", &one],
        &["bitmap", "--add", "-f", "qcow2", &one, "b"],
        &["amend", "-f", "qcow2", "-o", "lazy_refcounts=on", &one],
        &["resize", "-f", "qcow2", &one, "+1M"],
        &["check", "-f", "qcow2", &one],
        &["dd", "-f", "raw", "-O", "raw", "bs=1M", "count=1", &format!("if={zero}"), "of=out.raw"],
        &["iscsi", "ls", "-s", &portal],
        &["iscsi", "ls", "-s", "--output", "json", &portal],
    ] {
        said(&place, BLOCK_IMG, args, 0);
    }
    let commands = ["-c", "info", "-c", "map", "-c", "read 0 1k", "-c", "length"];
    said(&place, BLOCK_IO, &[&["-f", "raw", &zero][..], &commands].concat(), 0);

    // The image that was made here names what is below it as it was told to, and nothing else does.
    let unit =
        place.img(&["dd", "-f", "raw", "-O", "raw", "bs=1M", &format!("if={one}"), "of=unit"]);
    assert_eq!(unit, "");
    let bytes = place.dir.bytes("unit").unwrap();
    assert!(!bytes.windows(TELLTALE.len()).any(|bytes| bytes == TELLTALE.as_bytes()));
}

#[test]
fn no_complaint_tells_a_password() {
    let place = guarded();
    let addr = place.server.addr();
    let wrong = place.url_as(&format!("joe%{WRONG}@"), 0);
    let right = place.url_as(&format!("joe%{SECRET}@"), 0);
    let absent = place.url_as(&format!("joe%{SECRET}@"), 5);
    let opts = |more: &str| {
        format!("driver=iscsi,portal={addr},target={NAME},user=joe,password={WRONG}{more}")
    };
    let (bad_login, bad_option) = (opts(""), opts(",bogus=1"));
    let json = format!(
        "json:{{\"driver\": \"iscsi\", \"portal\": \"{addr}\", \"target\": \"{NAME}\", \
         \"user\": \"joe\", \"password\": \"{WRONG}\"}}"
    );
    place.dir.write("disk.raw", &[7; 512]).unwrap();
    let malformed = [
        // No host, a slash or a space in the password, no LUN, nothing but credentials.
        format!("iscsi://joe%{SECRET}/{NAME}/0"),
        format!("iscsi://joe%a/{SECRET}@{addr}/{NAME}/0"),
        format!("iscsi://joe%a {SECRET}@{addr}/{NAME}/0"),
        format!("iscsi://joe%{SECRET}@{addr}/{NAME}"),
        format!("iscsi://joe%{SECRET}"),
        format!("iscsi://joe%{SECRET}@{addr}:x/{NAME}/0"),
    ];
    let mut names: Vec<&str> = vec![&wrong, &absent, &json];
    names.extend(malformed.iter().map(String::as_str));
    for name in names {
        for args in [
            &["info", name][..],
            &["info", "--backing-chain", "--output", "json", name],
            &["map", "-f", "raw", name],
            &["check", "-f", "qcow2", name],
            &["resize", "-f", "raw", name, "1M"],
            &["convert", "-f", "raw", "-O", "raw", name, "out"],
            &["convert", "-n", "-f", "raw", "-O", "raw", "disk.raw", name],
            &["measure", "-O", "qcow2", name],
            &["snapshot", "-l", name],
            &["bench", name],
        ] {
            said(&place, BLOCK_IMG, args, 1);
        }
        let said = said(&place, BLOCK_IO, &[name, "-c", "length"], 1);
        assert!(said.contains("can't open"), "{said}");
        let opened = format!("open {name}");
        if !name.contains(' ') {
            self::said(&place, BLOCK_IO, &["-c", &opened], 1);
        }
    }
    for name in malformed.iter().chain([&wrong, &absent]) {
        said(&place, BLOCK_IMG, &["create", "-f", "raw", name, "1M"], 1);
        said(&place, BLOCK_IMG, &["convert", "-f", "raw", "-O", "qcow2", "disk.raw", name], 1);
        said(&place, BLOCK_IMG, &["info", "disk.raw", name], 1);
        said(&place, BLOCK_IMG, &["resize", &format!("--{name}"), "x"], 1);
    }
    for name in [&wrong, &right].into_iter().chain(&malformed[..3]) {
        said(&place, BLOCK_IMG, &["iscsi", "ls", "-s", name], 1);
    }
    for opts in [&bad_login, &bad_option] {
        let said = said(&place, BLOCK_IMG, &["info", "--image-opts", opts], 1);
        assert!(said.contains("password=(hidden)"), "{said}");
        self::said(&place, BLOCK_IO, &["--image-opts", opts, "-c", "length"], 1);
    }
    said(&place, BLOCK_IMG, &["resize", "-f", "raw", &right, "1G"], 1);
    said(&place, BLOCK_IMG, &["create", "-f", "raw", &right, "1G"], 1);
    // A name of a backing file that stands in an image, and is not followed.
    place.img(&["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", &right, "over", "1M"]);
    for args in [&["info", "--backing-chain", "over"][..], &["map", "over"], &["commit", "over"]] {
        let said = said(&place, BLOCK_IMG, args, 1);
        assert!(said.contains("'iscsi://joe@"), "{said}");
    }
}

#[test]
fn passwords_come_from_files_and_the_environment() {
    let place = guarded();
    place.dir.write("secret", SECRET.as_bytes()).unwrap();
    let addr = place.server.addr();
    let opts =
        format!("driver=iscsi,portal={addr},target={NAME},lun=1,user=joe,password-file=secret");
    assert!(place.img(&["info", "--image-opts", &opts]).contains("virtual size: 8 MiB"));
    let url = place.url_as("joe@", 0);
    assert_eq!(place.run(&["info", &url]).status, 1);
    let ended = place.run_with(BLOCK_IMG, &[("LIBISCSI_CHAP_PASSWORD", SECRET)], &["info", &url]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.out.contains(&format!("image: {url}\n")), "{ended:?}");
}
