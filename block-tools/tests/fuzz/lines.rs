//! Lines of block-io: each has an outcome, whatever stands in it.

use std::io::{self, Write};

use block_core::OpenFlags;
use block_testkit::fuzz::Target;
use block_tools::io_cmd::{BufferPlace, Outcome, Session};
use block_tools::open::{ImageSpec, block_on};

pub const LINES: Target = Target { name: "tools-lines", body: lines, seeds: texts, max_len: 600 };

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        "write -P 0xcd 0 512\nread -v -P 205 0 512\nread -P 205 -s 10 -l 20 0 512\n",
        "write -z -u 1k 1k\nwritev -P 7 100 10 20 30\nreadv -v 0 512 512\nmap\nalloc 0 8\n",
        "aio_write -P 3 0 4k\naio_read 0 4k\naio_flush\nlength\ninfo\ntruncate 6k\ndiscard 0 1k\n",
        "break pwritev A\nresume A\nremove_break A\nreopen -r\nwrite 0 1\nhelp write\nflush\nclose\n",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Takes what a session writes, and keeps nothing.
struct Nowhere;

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the line would leave this process: other files, signals, waits for ever or for long.
fn leaves(line: &str) -> bool {
    let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
    let name = words.next().unwrap_or_default();
    let others = ["open", "o", "sleep", "wait_break", "sigraise", "abort", "break", "reopen"];
    let reads_files = name.starts_with('w') || name.starts_with("aio_w");
    others.contains(&name) || (reads_files && words.any(|word| word.contains('s')))
}

fn lines(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut session =
        Session::new("block-io", Box::new(Nowhere), Box::new(Nowhere), BufferPlace::Aligned);
    let name =
        "json:{'driver':'raw','file':{'driver':'blkdebug','image':{'driver':'mem','size':8192}}}";
    let spec = ImageSpec { flags: OpenFlags::READ_WRITE, ..ImageSpec::new(name) };
    assert_eq!(block_on(session.open(&spec)), Outcome::Done);
    for line in text.lines().take(20).filter(|line| !leaves(line)) {
        if block_on(session.run(line)) == Outcome::Quit {
            break;
        }
    }
    assert_eq!(block_on(session.finish()), Outcome::Done);
}
