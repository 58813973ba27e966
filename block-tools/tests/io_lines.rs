//! Lines of commands as `block-io` takes them, without a process: any line ends with an outcome, and
//! what random requests leave on a disk is what they would leave in an array.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use block_core::OpenFlags;
use block_tools::io_cmd::{BufferPlace, Outcome, Session};
use block_tools::open::{ImageSpec, block_on};
use proptest::prelude::*;

/// Lines written by a session, shared with the test.
#[derive(Clone, Default)]
struct Lines(Rc<RefCell<Vec<u8>>>);

impl Lines {
    fn take(&self) -> String {
        String::from_utf8(self.0.take()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const DISK_BYTES: usize = 8192;

/// A session on a disk in memory.
fn session(place: BufferPlace) -> (Session, Lines) {
    let lines = Lines::default();
    let mut session =
        Session::new("block-io", Box::new(lines.clone()), Box::new(lines.clone()), place);
    let name = format!("json:{{'driver':'raw','file':{{'driver':'mem','size':{DISK_BYTES}}}}}");
    let spec = ImageSpec { flags: OpenFlags::READ_WRITE, ..ImageSpec::new(name) };
    assert_eq!(block_on(session.open(&spec)), Outcome::Done);
    (session, lines)
}

#[test]
fn a_closed_output_is_noticed() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut session =
        Session::new("block-io", Box::new(Closed), Box::new(Closed), BufferPlace::Aligned);
    assert_eq!(block_on(session.run("help")), Outcome::Done);
    assert!(session.is_broken());
    assert_eq!(block_on(session.finish()), Outcome::Failed);
}

#[test]
fn requests_run_while_other_commands_do() {
    let (mut session, lines) = session(BufferPlace::Aligned);
    let mut run = |line| {
        let outcome = block_on(session.run(line));
        (outcome, lines.take())
    };
    // Started, and nothing said yet; the next thing that waits says it.
    assert_eq!(run("aio_write -P 5 0 512"), (Outcome::Done, String::new()));
    let (outcome, text) = run("length");
    assert_eq!((outcome, text.as_str()), (Outcome::Done, "8 KiB\n"));
    let (outcome, text) = run("read -P 5 0 512");
    assert_eq!(outcome, Outcome::Done);
    assert!(text.starts_with("wrote 512/512 bytes at offset 0\n"), "{text}");
    assert!(text.contains("\nread 512/512 bytes at offset 0\n"), "{text}");
    // What fails later does not fail the command.
    assert_eq!(run("aio_read -P 6 0 512").0, Outcome::Done);
    let (outcome, text) = run("aio_flush");
    assert_eq!(outcome, Outcome::Done);
    assert!(text.starts_with("Pattern verification failed at offset 0, 512 bytes\n"), "{text}");
}

#[test]
fn more_requests_than_can_be_in_flight_all_end() {
    let (mut session, lines) = session(BufferPlace::Aligned);
    for _ in 0..3000 {
        assert_eq!(block_on(session.run("aio_write 0 512")), Outcome::Done);
    }
    assert_eq!(block_on(session.finish()), Outcome::Done);
    assert_eq!(lines.take().matches("wrote 512/512 bytes at offset 0\n").count(), 3000);
}

/// Commands that neither wait for long nor touch files.
const COMMANDS: &str = "(aio_flush|aio_read|aio_write|alloc|close|discard|flush|help|info|length|map|\
    quit|read|readv|reopen|truncate|write|writev|nosuch)";
const WORD: &str = "(-[a-zA-Z]{1,3}|-P|-l|-m|off|full|-?[0-9]{1,5}|0x[0-9a-f]{1,3}|[0-9.]{1,3}[kE]|\
    cache.direct=on|\\PC{1,4})";

/// One request of the model test: kind, offset, length, pattern.
type Op = (u8, usize, usize, u8);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_line_has_an_outcome(
        lines in prop::collection::vec((COMMANDS, prop::collection::vec(WORD, 0..5)), 1..20),
    ) {
        let (mut session, _) = session(BufferPlace::Aligned);
        for (command, words) in lines {
            // `write -s FILE` would read files of this machine.
            let words: Vec<_> = words.iter().filter(|word| !word.contains('s')).collect();
            let words: Vec<&str> = words.iter().map(|word| word.as_str()).collect();
            let _ = block_on(session.run(&format!("{command} {}", words.join(" "))));
        }
        prop_assert_eq!(block_on(session.finish()), Outcome::Done);
    }

    #[test]
    fn any_text_is_refused_or_run(text in "[^osw]{0,60}") {
        let (mut session, _) = session(BufferPlace::Aligned);
        let _ = block_on(session.run(&text));
    }

    #[test]
    fn requests_leave_what_they_would_in_an_array(
        ops in prop::collection::vec((0u8..5, 0..DISK_BYTES, 0usize..3000, any::<u8>()), 1..40),
        misaligned in any::<bool>(),
    ) {
        let place = if misaligned { BufferPlace::Misaligned } else { BufferPlace::Aligned };
        let (mut session, lines) = session(place);
        let mut model = vec![0u8; DISK_BYTES];
        for (kind, offset, len, byte) in ops {
            let len = len.min(DISK_BYTES - offset);
            let line = apply((kind, offset, len, byte), &mut model);
            prop_assert_eq!(block_on(session.run(&line)), Outcome::Done, "{}", line);
        }
        lines.take();
        prop_assert_eq!(block_on(session.run(&format!("read -v 0 {DISK_BYTES}"))), Outcome::Done);
        prop_assert_eq!(dumped(&lines.take()), model);
    }
}

/// Does a request to the array, and gives the line that does the same to the disk.
fn apply((kind, offset, len, byte): Op, model: &mut [u8]) -> String {
    let part = &mut model[offset..offset + len];
    let half = len / 2;
    match kind {
        0 => {
            part.fill(byte);
            format!("write -q -P {byte} {offset} {len}")
        }
        1 => {
            part.fill(byte);
            format!("writev -C -P {byte} {offset} {half} {}", len - half)
        }
        2 => {
            part.fill(0);
            format!("write -z -u {offset} {len}")
        }
        3 => {
            part.fill(0xcd);
            format!("write -f {offset} {len}")
        }
        _ => match part.first().copied() {
            Some(first) => {
                let same = part.iter().take_while(|byte| **byte == first).count();
                format!("read -P {first} -l {same} {offset} {len}")
            }
            None => format!("readv {offset} 0 0"),
        },
    }
}

/// The bytes of a hex dump.
fn dumped(text: &str) -> Vec<u8> {
    let rows = text.lines().filter_map(|line| line.split_once(":  "));
    let bytes = rows.flat_map(|(_, row)| row.split_once("  ").unwrap().0.split(' '));
    bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}
