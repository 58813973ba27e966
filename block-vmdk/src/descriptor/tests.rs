//! Tests of the descriptor.

use super::*;
use crate::units::Sector;
use proptest::prelude::*;

const PLAIN: &str = "# Disk DescriptorFile\n\
    version=1\n\
    CID=4f2a3d1c\n\
    parentCID=ffffffff\n\
    createType=\"twoGbMaxExtentFlat\"\n\
    \n\
    # Extent description\n\
    RW 4192256 FLAT \"a b-f001.vmdk\" 0\n\
    RDONLY 100 FLAT \"b-f002.vmdk\" 7\n\
    NOACCESS 5 ZERO\n\
    \n\
    ddb.adapterType = \"ide\"\n";

fn parse(text: &str) -> Result<Descriptor, DescriptorError> {
    Descriptor::parse(text.as_bytes())
}

#[test]
fn extents_of_every_access_are_there() {
    let descriptor = parse(PLAIN).unwrap();
    let names: Vec<_> = descriptor.extents().iter().map(|e| &e.file_name[..]).collect();
    assert_eq!(names, [&b"a b-f001.vmdk"[..], b"b-f002.vmdk", b""]);
    let access: Vec<_> = descriptor.extents().iter().map(|e| e.access).collect();
    assert_eq!(access, [Access::ReadWrite, Access::ReadOnly, Access::None]);
    assert_eq!(descriptor.extents()[1].offset, Some(Sector(7)));
    assert_eq!(descriptor.capacity(), SectorCount(4_192_361));
    assert_eq!(descriptor.create_type(), Ok(CreateType::TwoGbMaxExtentFlat));
    assert_eq!(descriptor.value("ddb.adaptertype"), Some(&b"ide"[..]));
    assert_eq!(descriptor.value("adapterType"), None);
}

#[test]
fn line_ends_and_blank_lines_change_nothing() {
    let plain = parse(PLAIN).unwrap();
    let dos = PLAIN.replace('\n', "\r\n");
    let spread = PLAIN.replace('\n', "\n\n \n\t\n");
    let cut = PLAIN.trim_end();
    let padded = format!("{PLAIN}\0\0\0garbage");
    for text in [dos.as_str(), &spread, cut, &padded] {
        let other = parse(text).unwrap();
        assert_eq!(other.extents(), plain.extents());
        assert_eq!(other.content_id(), plain.content_id());
        let printed = text.split('\0').next().unwrap();
        assert_eq!(other.to_bytes(), printed.as_bytes());
    }
}

#[test]
fn the_content_id_is_never_the_parents() {
    // The parent's comes first, so that a search for "CID=" would find it.
    let text = PLAIN
        .replace("CID=4f2a3d1c\n", "")
        .replace("createType", "cid = \"4f2a3d1c\"\ncreateType")
        .replace("parentCID=ffffffff", "parentCID=00000001");
    let mut descriptor = parse(&text).unwrap();
    assert_eq!(descriptor.content_id(), Some(ContentId(0x4f2a_3d1c)));
    assert_eq!(descriptor.parent_content_id(), Some(ContentId(1)));
    descriptor.set_content_id(ContentId(0xab)).unwrap();
    let expected = text.replace("4f2a3d1c", "000000ab");
    assert_eq!(descriptor.to_bytes(), expected.as_bytes());
    assert_eq!(parse(&expected), Ok(descriptor));
}

#[test]
fn a_parent_comes_changes_and_goes_and_nothing_else_does() {
    let hint = |name: &str| Quoted::new(name).unwrap();
    for (plain, end) in [(PLAIN.to_owned(), "\n"), (PLAIN.replace('\n', "\r\n"), "\r\n")] {
        let mut descriptor = parse(&plain).unwrap();
        descriptor.set_parent(&hint("a b.vmdk"), ContentId(0x1f)).unwrap();
        let create_type = "createType=\"twoGbMaxExtentFlat\"";
        let added = format!("{create_type}{end}parentFileNameHint=\"a b.vmdk\"");
        let expected =
            plain.replace("parentCID=ffffffff", "parentCID=0000001f").replace(create_type, &added);
        assert_eq!(descriptor.to_bytes(), expected.as_bytes());
        assert_eq!(parse(&expected), Ok(descriptor.clone()));

        descriptor.set_parent(&hint("c"), ContentId(2)).unwrap();
        let expected = expected.replace("\"a b.vmdk\"", "\"c\"").replace("0000001f", "00000002");
        assert_eq!(descriptor.to_bytes(), expected.as_bytes());

        descriptor.remove_parent().unwrap();
        assert_eq!(descriptor.to_bytes(), plain.as_bytes());
        assert_eq!(parse(&plain), Ok(descriptor));
    }
}

#[test]
fn a_parents_name_is_quoted_wherever_it_is_put() {
    let hint = Quoted::new(" p ").unwrap();
    let ids = "version=1\nparentCID=1";
    for (text, expected) in [
        (ids, "version=1\nparentCID=00000002\nparentFileNameHint=\" p \"\n"),
        (
            "version=1\nparentFileNameHint = old  \nparentCID = \"1\"\n",
            "version=1\nparentFileNameHint = \" p \"  \nparentCID = \"00000002\"\n",
        ),
        (
            "version=1\nPARENTFILENAMEHINT=\nparentCID=1\n",
            "version=1\nPARENTFILENAMEHINT=\" p \"\nparentCID=00000002\n",
        ),
    ] {
        let mut descriptor = parse(text).unwrap();
        descriptor.set_parent(&hint, ContentId(2)).unwrap();
        assert_eq!(text_of(&descriptor), expected);
        assert_eq!(descriptor.value(PARENT_HINT), Some(&b" p "[..]));
    }
    let mut none = parse("version=1\n").unwrap();
    let missing = DescriptorError::Missing { name: "parentCID" };
    assert_eq!(none.set_parent(&hint, ContentId(2)), Err(missing));
    assert_eq!(none.remove_parent(), Ok(()));
    assert_eq!(none.to_bytes(), b"version=1\n");
}

fn text_of(descriptor: &Descriptor) -> String {
    String::from_utf8(descriptor.to_bytes()).unwrap()
}

#[test]
fn bad_lines_are_named() {
    let line = |line: &str| match parse(&format!("version=1\n{line}\n")) {
        Err(DescriptorError::Line { number: 2, problem }) => problem,
        other => panic!("{line} gave {other:?}"),
    };
    let text = |t: &str| t.to_owned();
    assert_eq!(line("RW x FLAT \"a\" 0"), LineProblem::Sectors(text("x")));
    assert_eq!(line("RW -1 FLAT \"a\" 0"), LineProblem::Sectors(text("-1")));
    let huge = "99999999999999999999";
    assert_eq!(line(&format!("RW {huge} ZERO")), LineProblem::Sectors(text(huge)));
    assert_eq!(line("RW 1 FLUT \"a\" 0"), LineProblem::Kind(text("FLUT")));
    assert_eq!(line("RW 1 FLAT a 0"), LineProblem::FileName);
    assert_eq!(line("RW 1 FLAT \"a 0"), LineProblem::FileName);
    assert_eq!(line("RW 1 SPARSE \"\""), LineProblem::FileName);
    assert_eq!(line("RW 1 FLAT \"a\""), LineProblem::NoOffset);
    assert_eq!(line("RW 1 FLAT \"a\" 0x1"), LineProblem::Offset(text("0x1")));
    assert_eq!(line("RW 1 SPARSE \"a\" 0 more"), LineProblem::Excess(text("more")));
    assert_eq!(line("RW"), LineProblem::Sectors(text("")));
}

#[test]
fn bad_settings_are_named() {
    let error = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(error("CID=1\n"), "version is missing");
    assert_eq!(error("version=4\n"), "version is \"4\": unknown value");
    assert_eq!(error("version=1\nversion=1\n"), "version is there more than once");
    assert_eq!(error("version=1\nCID=xyz\n"), "CID is \"xyz\": unknown value");
    assert_eq!(error("version=1\nCID=1\nCID=2\n"), "CID is there more than once");
    let sum = format!("version=1\n{}", "RW 10000000000000000 ZERO\n".repeat(2));
    assert_eq!(error(&sum), "the extents together are longer than any disk");
    let long = "#".repeat(DESCRIPTOR_BYTES_MAX + 1);
    assert_eq!(parse(&long), Err(DescriptorError::TooLong { len: long.len() }));
    let mut no_id = parse("version=1\n").unwrap();
    let missing = DescriptorError::Missing { name: "CID" };
    assert_eq!(no_id.set_content_id(ContentId(1)), Err(missing));
    assert_eq!(no_id.to_bytes(), b"version=1\n");
}

fn extents() -> impl Strategy<Value = Extent> {
    let kinds = prop::sample::select(vec![
        ExtentKind::Flat,
        ExtentKind::Sparse,
        ExtentKind::Zero,
        ExtentKind::Vmfs,
        ExtentKind::VmfsSparse,
        ExtentKind::SeSparse,
        ExtentKind::VmfsRdm,
        ExtentKind::VmfsRaw,
    ]);
    let access = prop::sample::select(vec![Access::ReadWrite, Access::ReadOnly, Access::None]);
    let name = "[a-zA-Z0-9 ./=#-]{1,20}";
    (access, 0..1u64 << 40, kinds, name, 0..1u64 << 40).prop_map(
        |(access, sectors, kind, name, offset)| Extent {
            access,
            sectors: SectorCount(sectors),
            kind,
            file_name: match kind {
                ExtentKind::Zero => Vec::new(),
                _ => name.into_bytes(),
            },
            offset: (kind == ExtentKind::Flat).then_some(Sector(offset)),
        },
    )
}

/// Lines that mean something, and lines that do not.
fn text_lines() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        extents().prop_map(|e| e.to_line()),
        "[ a-zA-Z.]{0,12} ?= ?\"?[a-z0-9]{0,8}\"?".prop_map(String::into_bytes),
        "#[ -~]{0,20}".prop_map(String::into_bytes),
        "[ \t]{0,3}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #[test]
    fn an_extent_is_parsed_as_it_is_printed(extent in extents()) {
        prop_assert_eq!(Extent::parse(&extent.to_line()), Ok(Some(extent)));
    }

    #[test]
    fn every_line_is_kept(
        lines in prop::collection::vec((text_lines(), any::<bool>()), 0..12),
        id: u32,
    ) {
        let mut text = b"version=1\r\nCID = \"1\"\n".to_vec();
        for (line, dos) in lines {
            text.extend_from_slice(&line);
            text.extend_from_slice(if dos { b"\r\n" } else { b"\n" });
        }
        if let Ok(mut descriptor) = Descriptor::parse(&text) {
            let printed = descriptor.to_bytes();
            let visible = text.split(|b| *b == 0).next().unwrap();
            prop_assert_eq!(&printed[..], visible);
            prop_assert_eq!(Descriptor::parse(&printed), Ok(descriptor.clone()));
            // A new id changes its own line and nothing else.
            descriptor.set_content_id(ContentId(id)).unwrap();
            let changed = descriptor.to_bytes();
            let (head, tail) = (&b"version=1\r\nCID = \""[..], &printed[19..]);
            let expected = [head, ContentId(id).to_string().as_bytes(), tail].concat();
            prop_assert_eq!(&changed, &expected);
            prop_assert_eq!(Descriptor::parse(&changed), Ok(descriptor));
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        Descriptor::parse(&bytes).ok();
        let text = [b"version=1\nRW ", &bytes[..]].concat();
        Descriptor::parse(&text).ok();
    }
}
