//! `block-img iscsi ls`: what it lists, how it logs in, how it fails.

use block_iscsi::chap::Secret;
use block_testkit::iscsi::LunConfig;
use block_testkit::iscsi::target::{Account, Admission, TargetConfig};
use serde_json::{Value, json};

use super::{BLOCK_IMG, NAME, Place, thick, thin};

const SECRET: &str = "correct-horse-9";
const THEIR_SECRET: &str = "battery-staple-7";

/// Joe may log in, and the target can prove that it is one.
fn guarded(config: &mut TargetConfig) {
    let mut joe = Account::new("joe", SECRET);
    joe.mutual = Some(("target".to_owned(), Secret::new(THEIR_SECRET.as_bytes())));
    config.admission = Admission::Chap(vec![joe]);
}

#[test]
fn targets_are_listed_with_their_portals_and_units() {
    let other = "iqn.2026-01.org.example:other";
    let large = LunConfig::thick(4096, (3 << 30) / 4096);
    let place = Place::with(&[thin(64), large, LunConfig::thick(512, 3)], |c| {
        c.names.push(other.to_owned())
    });
    let portal = place.server.addr().to_string();
    let url = format!("iscsi://{portal}");
    let head = |name: &str| format!("Target:{name} Portal:{portal},1\n");
    assert_eq!(place.img(&["iscsi", "ls", &url]), head(NAME) + &head(other));

    let luns = "Lun:0    Type:DIRECT_ACCESS (Size:64M)\n\
                Lun:1    Type:DIRECT_ACCESS (Size:3G)\n\
                Lun:2    Type:DIRECT_ACCESS (Size:1k)\n";
    let listed = place.img(&["iscsi", "ls", "-s", &url]);
    assert_eq!(listed, [&head(NAME), luns, &head(other), luns].concat());
    let only = place.img(&["iscsi", "ls", "--show-luns", &format!("{url}/{other}")]);
    assert_eq!(only, [&head(other), luns].concat());
    assert_eq!(place.img(&["iscsi", "ls", &format!("{url}/iqn.2026-01.org.example:no")]), "");

    let parsed = |args: &[&str]| -> Value { serde_json::from_str(&place.img(args)).unwrap() };
    let listed = parsed(&["iscsi", "ls", "--output", "json", &url]);
    assert_eq!(
        listed,
        json!([{"target": NAME, "portal": portal, "group": 1},
               {"target": other, "portal": portal, "group": 1}])
    );
    let listed = parsed(&["iscsi", "ls", "-s", "--output=json", &format!("{url}/{NAME}")]);
    let luns = listed[0]["luns"].as_array().unwrap();
    assert_eq!(luns.len(), 3);
    assert_eq!((&luns[0]["lun"], &luns[0]["size"]), (&json!(0), &json!(64 << 20)));
    assert_eq!((&luns[1]["type"], &luns[1]["size"]), (&json!("DIRECT_ACCESS"), &json!(3u64 << 30)));
}

#[test]
fn credentials_come_from_the_url_files_and_the_environment() {
    let place = Place::with(&[thick(1)], guarded);
    place.dir.write("secret", format!("{SECRET}\n").as_bytes()).unwrap();
    place.dir.write("theirs", THEIR_SECRET.as_bytes()).unwrap();
    place.dir.write("wrong", b"not-theirs-at-all").unwrap();
    let addr = place.server.addr();
    let [bare, joe, full] =
        ["", "joe@", "joe%correct-horse-9@"].map(|user| format!("iscsi://{user}{addr}"));
    let file = ["--password-file", "secret"];
    let mutual = ["--target-user", "target", "--target-password-file"];
    let env = [("LIBISCSI_CHAP_USERNAME", "joe"), ("LIBISCSI_CHAP_PASSWORD", SECRET)];
    let theirs = [
        ("LIBISCSI_CHAP_TARGET_USERNAME", "target"),
        ("LIBISCSI_CHAP_TARGET_PASSWORD", THEIR_SECRET),
    ];
    let run = |env: &[(&str, &str)], args: &[&[&str]], url: &str| {
        let args = [&["iscsi", "ls", "-s"], args.concat().as_slice(), &[url]].concat();
        place.run_with(BLOCK_IMG, env, &args)
    };
    for (env, args, url) in [
        (&[][..], vec![], &full),
        (&[], vec![&file[..]], &joe),
        (&[], vec![&["--user", "joe"], &file[..]], &bare),
        (&env, vec![], &bare),
        (&env[1..], vec![], &joe),
        (&[], vec![&mutual[..], &["theirs"]], &full),
        (&theirs, vec![&file[..]], &joe),
    ] {
        let ended = run(env, &args, url);
        assert_eq!((ended.status, ended.err.as_str()), (0, ""), "{args:?} {url}");
        assert!(ended.out.contains("(Size:1M)"), "{ended:?}");
    }
    for (env, args, url) in [
        (&[][..], vec![], &bare),
        (&[], vec![], &joe),
        (&[], vec![&["--password-file", "wrong"][..]], &joe),
        (&[], vec![&["--password-file", "absent"][..]], &joe),
        (&env[..1], vec![], &bare),
        (&[], vec![&mutual[..], &["wrong"]], &full),
        (&[], vec![&["--header-digest", "md5"][..]], &full),
        (&[], vec![&["--timeout", "soon"][..]], &full),
    ] {
        let ended = run(env, &args, url);
        assert_eq!((ended.status, ended.out.as_str()), (1, ""), "{args:?} {url}");
        assert!(ended.err.starts_with("block-img: iscsi://"), "{ended:?}");
        assert!(!ended.err.contains(SECRET), "{ended:?}");
    }
    let digests = ["--header-digest", "crc32c", "--data-digest", "crc32c", "--timeout", "60"];
    assert_eq!(run(&[], &[&digests, &["-i", "iqn.2026-01.org.example:me"]], &full).status, 0);
}

#[test]
fn a_target_that_cannot_be_asked_is_told_of() {
    let place = Place::new(&[thick(1)]);
    let url = format!("iscsi://{}", place.server.addr());
    // Nobody listens there.
    place.server.with(|target| target.config().portal = "127.0.0.1:1".to_owned());
    assert_eq!(place.img(&["iscsi", "ls", &url]), format!("Target:{NAME} Portal:127.0.0.1:1,1\n"));
    let ended = place.run(&["iscsi", "ls", "-s", &url]);
    assert_eq!(ended.out, format!("Target:{NAME} Portal:127.0.0.1:1,1\n"));
    assert_eq!(ended.status, 1);
    assert!(ended.err.contains(&format!("{NAME} at 127.0.0.1:1: login: ")), "{ended:?}");
}

#[test]
fn what_is_no_portal_is_wrong_usage_or_refused() {
    let place = Place::new(&[thick(1)]);
    let url = format!("iscsi://{}", place.server.addr());
    for args in [&[][..], &["ls"], &["ls", &url, &url], &["list", &url], &["ls", "--bogus", &url]] {
        let ended = place.run(&[&["iscsi"], args].concat());
        assert_eq!((ended.status, ended.out.as_str()), (1, ""), "{args:?}");
        assert!(ended.err.contains("--help"), "{ended:?}");
    }
    for url in [&place.url(0), "127.0.0.1", "iscsi://", "iscsi://127.0.0.1/disk"] {
        let ended = place.run(&["iscsi", "ls", url]);
        assert_eq!((ended.status, ended.out.as_str()), (1, ""), "{url}");
    }
    let help = place.img(&["iscsi", "ls", "--help"]);
    for word in ["--show-luns", "--password-file", "LIBISCSI_CHAP_PASSWORD", "[/target]"] {
        assert!(help.contains(word), "{help}");
    }
}
