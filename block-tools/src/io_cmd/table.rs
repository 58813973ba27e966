//! The commands: their names, how many words they take, and their help.

/// What a command does; [`super::Session`] knows how.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    /// `abort`
    Abort,
    /// `aio_flush`
    AioFlush,
    /// `aio_read`
    AioRead,
    /// `aio_write`
    AioWrite,
    /// `alloc`
    Alloc,
    /// `break`
    Break,
    /// `close`
    Close,
    /// `discard`
    Discard,
    /// `flush`
    Flush,
    /// `help`
    Help,
    /// `info`
    Info,
    /// `length`
    Length,
    /// `map`
    Map,
    /// `open`
    Open,
    /// `quit`
    Quit,
    /// `read`
    Read,
    /// `readv`
    Readv,
    /// `remove_break`
    RemoveBreak,
    /// `reopen`
    Reopen,
    /// `resume`
    Resume,
    /// `sigraise`
    Sigraise,
    /// `sleep`
    Sleep,
    /// `truncate`
    Truncate,
    /// `wait_break`
    WaitBreak,
    /// `write`
    Write,
    /// `writev`
    Writev,
}

/// What a command needs before it runs.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// An open image.
    Image,
    /// An image that may be written.
    WritableImage,
}

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    /// What it does.
    pub(super) verb: Verb,
    /// Its names, the usual one first.
    pub(super) names: &'static [&'static str],
    /// What it needs.
    pub(super) needs: Needs,
    /// Fewest words after the name, options included.
    pub(super) min_words: usize,
    /// Most words, where there is a limit.
    pub(super) max_words: Option<usize>,
    /// Its words, for the help.
    pub(super) usage: &'static str,
    /// What it does, in a few words.
    pub(super) summary: &'static str,
    /// Its options, one a line.
    pub(super) options: &'static [&'static str],
}

impl Command {
    /// The command of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        COMMANDS.iter().find(|command| command.names.contains(&name))
    }

    /// The line that `help` shows, under the name that was asked for.
    pub(super) fn line(&self, name: &str) -> String {
        let space = if self.usage.is_empty() { "" } else { " " };
        format!("{name}{space}{} -- {}", self.usage, self.summary)
    }

    /// What is wrong with this number of words, if anything is.
    pub(super) fn refuse_count(&self, count: usize) -> Option<String> {
        let fits = count >= self.min_words && self.max_words.is_none_or(|max| count <= max);
        if fits {
            return None;
        }
        let expected = match self.max_words {
            None => format!("at least {} arguments", self.min_words),
            Some(max) if max == self.min_words => format!("{max} arguments"),
            Some(max) => format!("between {} and {max} arguments", self.min_words),
        };
        Some(format!("bad argument count {count} to {}, expected {expected}", self.names[0]))
    }
}

const fn command(verb: Verb, names: &'static [&'static str], needs: Needs) -> Command {
    Command {
        verb,
        names,
        needs,
        min_words: 0,
        max_words: Some(0),
        usage: "",
        summary: "",
        options: &[],
    }
}

/// All of them, sorted by name.
pub(super) static COMMANDS: [Command; 26] = [
    Command {
        summary: "ends the program as a crash would: nothing is written back",
        ..command(Verb::Abort, &["abort"], Needs::Nothing)
    },
    Command {
        summary: "waits for every aio request to end",
        ..command(Verb::AioFlush, &["aio_flush"], Needs::Image)
    },
    Command {
        min_words: 2,
        max_words: None,
        usage: "[-Ciqrv] [-P pattern] off len [len..]",
        summary: "starts a read and goes on while it runs",
        options: &[
            "-C  report one line for programs",
            INVALID,
            "-P  the byte that must be read",
            "-q  report nothing",
            "-r  a hint that the buffers will be used again",
            "-v  show the data",
        ],
        ..command(Verb::AioRead, &["aio_read"], Needs::Image)
    },
    Command {
        min_words: 2,
        max_words: None,
        usage: "[-Cfiqruz] [-P pattern] off len [len..]",
        summary: "starts a write and goes on while it runs",
        options: &[
            "-C  report one line for programs",
            "-f  stable when done (FUA)",
            INVALID,
            "-P  the byte to write (205 if not given)",
            "-q  report nothing",
            "-r  a hint that the buffers will be used again",
            "-u  with -z: may deallocate",
            "-z  write zeroes without a buffer",
        ],
        ..command(Verb::AioWrite, &["aio_write"], Needs::WritableImage)
    },
    Command {
        min_words: 1,
        max_words: Some(2),
        usage: "offset [count]",
        summary: "counts the bytes that this image itself holds, not its backing file",
        ..command(Verb::Alloc, &["alloc", "a"], Needs::Image)
    },
    Command {
        min_words: 2,
        max_words: Some(2),
        usage: "event tag",
        summary: "holds the next request after an event (of the driver blkdebug)",
        ..command(Verb::Break, &["break"], Needs::Image)
    },
    Command { summary: "closes the image", ..command(Verb::Close, &["close", "c"], Needs::Image) },
    Command {
        min_words: 2,
        max_words: None,
        usage: "[-Cq] off len",
        summary: "says that a range is not needed any more",
        options: &["-C  report one line for programs", "-q  report nothing"],
        ..command(Verb::Discard, &["discard", "d"], Needs::WritableImage)
    },
    Command {
        summary: "makes all finished writes stable",
        ..command(Verb::Flush, &["flush", "f"], Needs::Image)
    },
    Command {
        max_words: Some(1),
        usage: "[command]",
        summary: "describes one command, or lists them all",
        ..command(Verb::Help, &["help", "?"], Needs::Nothing)
    },
    Command {
        summary: "tells about the open image",
        ..command(Verb::Info, &["info", "i"], Needs::Image)
    },
    Command {
        summary: "tells the length of the disk",
        ..command(Verb::Length, &["length", "l"], Needs::Image)
    },
    Command {
        summary: "lists which ranges this image itself holds",
        ..command(Verb::Map, &["map"], Needs::Image)
    },
    Command {
        min_words: 1,
        max_words: None,
        usage: "[-rsCnkU] [-i aio] [-t cache] [-d discard] [-o options] [path]",
        summary: "opens an image",
        options: &[
            "-C  write to the image what is read from its backing file",
            "-d  what becomes of discards: ignore or unmap",
            "-i  threads, native or io_uring",
            "-k  the same as -i native",
            "-n  the same as -t none",
            "-o  options of the node: name=value,name=value",
            "-r  read only",
            "-s  write to a temporary overlay, so that the image stays as it is",
            "-t  cache mode: none, writeback, writethrough, directsync or unsafe",
            "-U  take no lock that keeps others out",
        ],
        ..command(Verb::Open, &["open", "o"], Needs::Nothing)
    },
    Command {
        max_words: None,
        summary: "ends the program",
        ..command(Verb::Quit, &["quit", "q"], Needs::Nothing)
    },
    Command {
        min_words: 2,
        max_words: None,
        usage: "[-bCpqrv] [-P pattern [-s off] [-l len]] off len",
        summary: "reads a range",
        options: &[
            "-b  of the machine state, not of the disk",
            "-C  report one line for programs",
            "-l  with -P: how many bytes to verify",
            "-p  nothing, kept for old scripts",
            "-P  the byte that must be read",
            "-q  report nothing",
            "-r  a hint that the buffer will be used again",
            "-s  with -P: where to start verifying, from the first byte read",
            "-v  show the data",
        ],
        ..command(Verb::Read, &["read", "r"], Needs::Image)
    },
    Command {
        min_words: 2,
        max_words: None,
        usage: "[-Cqrv] [-P pattern] off len [len..]",
        summary: "reads a range into several buffers",
        options: READ_OPTIONS,
        ..command(Verb::Readv, &["readv"], Needs::Image)
    },
    Command {
        min_words: 1,
        max_words: Some(1),
        usage: "tag",
        summary: "takes breakpoints away, and lets what they hold go on",
        ..command(Verb::RemoveBreak, &["remove_break"], Needs::Image)
    },
    Command {
        max_words: None,
        usage: "[(-r|-w)] [-c cache] [-o options]",
        summary: "changes how the image is open",
        options: &[
            "-c  cache mode",
            "-o  options: cache.direct, cache.no-flush, read-only",
            "-r  read only",
            "-w  for reading and writing",
        ],
        ..command(Verb::Reopen, &["reopen"], Needs::Image)
    },
    Command {
        min_words: 1,
        max_words: Some(1),
        usage: "tag",
        summary: "lets the request go on that is held under a tag",
        ..command(Verb::Resume, &["resume"], Needs::Image)
    },
    Command {
        min_words: 1,
        max_words: Some(1),
        usage: "signal",
        summary: "sends a signal, by its number, to the program itself",
        ..command(Verb::Sigraise, &["sigraise"], Needs::Nothing)
    },
    Command {
        min_words: 1,
        max_words: Some(1),
        usage: "milliseconds",
        summary: "waits",
        ..command(Verb::Sleep, &["sleep"], Needs::Nothing)
    },
    Command {
        min_words: 1,
        max_words: Some(3),
        usage: "[-m prealloc_mode] off",
        summary: "changes the length of the disk",
        options: &["-m  what a growing disk allocates: off, metadata, falloc or full"],
        ..command(Verb::Truncate, &["truncate", "t"], Needs::WritableImage)
    },
    Command {
        min_words: 1,
        max_words: Some(1),
        usage: "tag",
        summary: "waits until a request is held under a tag",
        ..command(Verb::WaitBreak, &["wait_break"], Needs::Image)
    },
    Command {
        min_words: 2,
        max_words: None,
        usage: "[-bcCfnpqruz] [-P pattern | -s source_file] off len",
        summary: "writes a range",
        options: &[
            "-b  to the machine state, not to the disk",
            "-c  compressed",
            "-C  report one line for programs",
            "-f  stable when done (FUA)",
            "-n  with -z: fail rather than write zeroes slowly",
            "-p  nothing, kept for old scripts",
            "-P  the byte to write (205 if not given)",
            "-q  report nothing",
            "-r  a hint that the buffer will be used again",
            "-s  write the contents of a file, over and over",
            "-u  with -z: may deallocate",
            "-z  write zeroes without a buffer",
        ],
        ..command(Verb::Write, &["write", "w"], Needs::WritableImage)
    },
    Command {
        min_words: 2,
        max_words: None,
        usage: "[-Cfqr] [-P pattern] off len [len..]",
        summary: "writes a range from several buffers",
        options: &[
            "-C  report one line for programs",
            "-f  stable when done (FUA)",
            "-P  the byte to write (205 if not given)",
            "-q  report nothing",
            "-r  a hint that the buffers will be used again",
        ],
        ..command(Verb::Writev, &["writev"], Needs::WritableImage)
    },
];

const INVALID: &str = "-i  make no request, as for one that is refused";

const READ_OPTIONS: &[&str] = &[
    "-C  report one line for programs",
    "-P  the byte that must be read",
    "-q  report nothing",
    "-r  a hint that the buffers will be used again",
    "-v  show the data",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_sorted() {
        let names: Vec<_> = COMMANDS.iter().map(|c| c.names[0]).collect();
        assert!(names.is_sorted());
        let all: Vec<_> = COMMANDS.iter().flat_map(|c| c.names).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(Command::named("a").map(|c| c.verb), Some(Verb::Alloc));
    }

    #[test]
    fn word_counts_are_refused_with_what_was_expected() {
        let text = |name, count| Command::named(name).and_then(|c| c.refuse_count(count));
        assert_eq!(text("read", 2), None);
        assert_eq!(
            text("read", 1).as_deref(),
            Some("bad argument count 1 to read, expected at least 2 arguments")
        );
        assert_eq!(
            text("map", 1).as_deref(),
            Some("bad argument count 1 to map, expected 0 arguments")
        );
        assert_eq!(
            text("truncate", 4).as_deref(),
            Some("bad argument count 4 to truncate, expected between 1 and 3 arguments")
        );
    }
}
