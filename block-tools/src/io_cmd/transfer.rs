//! The commands that move data or give it up: `read`, `write`, their vectored and asynchronous
//! forms, and `discard`.

use std::fs::File;
use std::future::Future;
use std::io::Read;

use block_core::backend::BlockBackend;
use block_core::range::{SECTOR_SIZE, to_usize};
use block_core::request::Request;
use block_core::{Alignment, ByteRange, Cancel, Error, IoBuf, IoVec, Node, RequestFlags, Result};

use super::args::Parsed;
use super::report::{Check, Described, Style};
use super::{BufferPlace, Failure, Session, number, size, sort};

/// Longest request that a command makes: `i32::MAX` rounded down to sectors.
const MAX_REQUEST_BYTES: u64 = 0x7fff_fe00;

/// What is written unless `-P` says otherwise.
const WRITTEN: u8 = 0xcd;

/// What a buffer holds before it is read into: seen only if the driver leaves it alone.
const UNREAD: u8 = 0xab;

/// How far a misaligned buffer is from its page.
const MISALIGNED_BY: usize = 16;

impl Session {
    pub(super) async fn read(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("read", words, "bCl:pP:qrs:v")?;
        let (mut pattern, mut part_start, mut part_len) = (None, None, None);
        // In the order in which they stand, so that the first wrong value is the one complained of.
        for (letter, value) in parsed.options() {
            match letter {
                'P' => pattern = Some(pattern_byte(value)?),
                's' => part_start = Some(size(value)?),
                'l' => part_len = Some(size(value)?),
                _ => {}
            }
        }
        let &[offset_text, len_text] = parsed.args.as_slice() else {
            return Err(Failure::Usage(None));
        };
        let (offset, len) = (size(offset_text)?, size(len_text)?);
        if len > MAX_REQUEST_BYTES {
            return Err(too_long(MAX_REQUEST_BYTES, len_text));
        }
        if pattern.is_none() && (part_len.is_some() || part_start.is_some()) {
            return Err(Failure::Usage(None));
        }
        let start = part_start.unwrap_or(0);
        let part_len = part_len.unwrap_or_else(|| len.saturating_sub(start));
        if start > len || part_len > len - start {
            let line = "pattern verification range exceeds end of read data";
            return Err(Failure::Line(line.to_owned()));
        }
        let check = pattern.map(|pattern| Check { pattern, start, len: part_len });
        let described = describe("read", "read", offset, len, &parsed);
        if parsed.has('b') {
            refuse_odd((offset, offset_text), (len, len_text))?;
            let (node, data) = self.prepare_state("read", len, UNREAD)?;
            let described = Described { check, data: data.clone(), ..described };
            let request = async move { node.load_vm_state(offset, data).await };
            return self.finish_request(described, request).await;
        }
        let (request, data) = self.send(offset, &[len], UNREAD, BlockBackend::read);
        let described = Described { check, data, ..described };
        self.finish_request(described, finish(request)).await
    }

    pub(super) async fn readv(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("readv", words, "CP:qrv")?;
        let (described, request) = self.prepare_readv(&parsed)?;
        self.finish_request(described, request).await
    }

    pub(super) async fn aio_read(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("aio_read", words, "CiP:qrv")?;
        let (described, request) = self.prepare_readv(&parsed)?;
        if parsed.has('i') {
            self.out.line(format_args!("injecting invalid read request"));
            return Ok(());
        }
        self.pending.start(&mut self.out, described, request).await;
        Ok(())
    }

    fn prepare_readv(
        &self,
        parsed: &Parsed<'_>,
    ) -> Result<(Described, impl Future<Output = Result<()>> + 'static), Failure> {
        let pattern = pattern(parsed)?;
        let (offset, lens) = offset_and_lens(parsed)?;
        let len = lens.iter().sum();
        let (request, data) = self.send(offset, &lens, UNREAD, BlockBackend::read);
        let check = pattern.map(|pattern| Check { pattern, start: 0, len });
        let described = describe("read", "readv", offset, len, parsed);
        Ok((Described { check, data, ..described }, finish(request)))
    }

    pub(super) async fn write(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("write", words, "bcCfnpP:qrs:uz")?;
        let pattern = pattern(&parsed)?;
        let &[offset_text, len_text] = parsed.args.as_slice() else {
            return Err(Failure::Usage(None));
        };
        refuse_write_options(&parsed)?;
        let (offset, len) = (size(offset_text)?, size(len_text)?);
        if len > MAX_REQUEST_BYTES && !parsed.has('n') {
            return Err(Failure::Line(format!(
                "length cannot exceed {MAX_REQUEST_BYTES} without -n, given {len_text}"
            )));
        }
        if parsed.has('c') || parsed.has('b') {
            refuse_odd((offset, offset_text), (len, len_text))?;
        }
        let flags = write_flags(&parsed);
        let described = describe("wrote", "write", offset, len, &parsed);
        let source = parsed.value('s').map_or(Ok(Vec::new()), |path| read_source(path, len))?;
        let byte = pattern.unwrap_or(WRITTEN);
        if parsed.has('b') {
            let (node, data) = self.prepare_state("write", len, byte)?;
            repeat(&source, &data);
            let request = async move { node.save_vm_state(offset, data).await };
            return self.finish_request(described, request).await;
        }
        let request = if parsed.has('z') {
            self.send_bare(offset, len, |image, range| {
                image.write_zeroes(range, flags, &Cancel::new())
            })
        } else {
            let (request, _) = self.send(offset, &[len], byte, |image, range, data| {
                repeat(&source, &data);
                image.write(range, data, flags)
            });
            request
        };
        self.finish_request(described, finish(request)).await
    }

    pub(super) async fn writev(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("writev", words, "CfP:qr")?;
        let pattern = pattern(&parsed)?;
        let (offset, lens) = offset_and_lens(&parsed)?;
        let len = lens.iter().sum();
        let (byte, flags) = (pattern.unwrap_or(WRITTEN), write_flags(&parsed));
        let (request, _) =
            self.send(offset, &lens, byte, |image, range, data| image.write(range, data, flags));
        let described = describe("wrote", "writev", offset, len, &parsed);
        self.finish_request(described, finish(request)).await
    }

    pub(super) async fn aio_write(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("aio_write", words, "CfiP:qruz")?;
        let pattern = pattern(&parsed)?;
        if parsed.args.len() < 2 {
            return Err(Failure::Usage(None));
        }
        let refused = match (parsed.has('z'), parsed.has('u'), parsed.has('r')) {
            (true, _, _) if parsed.args.len() != 2 => "-z supports only a single length parameter",
            (false, true, _) => "-u requires -z to be specified",
            (true, _, true) => "cannot combine zero write with registered I/O buffer",
            _ => "",
        };
        if !refused.is_empty() {
            return Err(Failure::Line(refused.to_owned()));
        }
        let (offset, lens) = match parsed.args.as_slice() {
            // Zeroes need no buffer, and may be as many as the disk has room for.
            &[offset, len] if parsed.has('z') => (size(offset)?, vec![size(len)?]),
            _ => offset_and_lens(&parsed)?,
        };
        if parsed.has('i') {
            self.out.line(format_args!("injecting invalid write request"));
            return Ok(());
        }
        let len = lens.iter().sum();
        let described = describe("wrote", "aio_write", offset, len, &parsed);
        let (byte, flags) = (pattern.unwrap_or(WRITTEN), write_flags(&parsed));
        let request = if parsed.has('z') {
            self.send_bare(offset, len, |image, range| {
                image.write_zeroes(range, flags, &Cancel::new())
            })
        } else {
            let (request, _) = self
                .send(offset, &lens, byte, |image, range, data| image.write(range, data, flags));
            request
        };
        self.pending.start(&mut self.out, described, finish(request)).await;
        Ok(())
    }

    pub(super) async fn discard(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("discard", words, "Cq")?;
        let &[offset_text, len_text] = parsed.args.as_slice() else {
            return Err(Failure::Usage(None));
        };
        let (offset, len) = (size(offset_text)?, size(len_text)?);
        if len > MAX_REQUEST_BYTES {
            return Err(too_long(MAX_REQUEST_BYTES, len_text));
        }
        let request = self.send_bare(offset, len, BlockBackend::discard);
        let described = describe("discard", "discard", offset, len, &parsed);
        self.finish_request(described, finish(request)).await
    }

    /// The node and the buffer of a request for `len` bytes of the machine state.
    fn prepare_state(&self, verb: &str, len: u64, byte: u8) -> Result<(Node, IoVec), Failure> {
        let node = self.image()?.node().clone();
        let data = self.buffers(&[len], byte).map_err(|error| failed(verb, error))?;
        Ok((node, data))
    }

    /// Makes a request without buffers.
    fn send_bare(
        &self,
        offset: u64,
        len: u64,
        make: impl FnOnce(&BlockBackend, ByteRange) -> Result<Request>,
    ) -> Result<Request> {
        let image = self.image.as_ref().ok_or(Error::Closed)?;
        // Checked here, before memory is allocated for what cannot be.
        match ByteRange::new(offset, len) {
            Ok(range) if range.end() <= image.len() => make(image, range),
            _ => Err(Error::IO),
        }
    }

    /// Makes a request with buffers of these lengths, filled with `byte`; gives the buffers too.
    fn send(
        &self,
        offset: u64,
        lens: &[u64],
        byte: u8,
        make: impl FnOnce(&BlockBackend, ByteRange, IoVec) -> Result<Request>,
    ) -> (Result<Request>, IoVec) {
        let mut data = IoVec::new();
        let request = self.send_bare(offset, lens.iter().sum(), |image, range| {
            data = self.buffers(lens, byte)?;
            make(image, range, data.clone())
        });
        (request, data)
    }

    /// Buffers of these lengths, filled with `byte`.
    fn buffers(&self, lens: &[u64], byte: u8) -> Result<IoVec> {
        let skip = match self.place {
            BufferPlace::Aligned => 0,
            BufferPlace::Misaligned => MISALIGNED_BY,
        };
        let mut iov = IoVec::new();
        for len in lens {
            let len = to_usize(*len);
            let buf = IoBuf::zeroed(len + skip, Alignment::PAGE)?.slice(skip, len);
            buf.fill(byte);
            iov.push(buf);
        }
        Ok(iov)
    }
}

/// A request that may have been refused at once.
async fn finish(request: Result<Request>) -> Result<()> {
    request?.await
}

/// Refuses what is not in whole sectors.
fn refuse_odd(offset: (u64, &str), len: (u64, &str)) -> Result<(), Failure> {
    let values = [("offset", offset), ("count", len)];
    match values.into_iter().find(|(_, (value, _))| value % SECTOR_SIZE != 0) {
        None => Ok(()),
        Some((name, (_, text))) => {
            Err(Failure::Line(format!("{text} is not a sector-aligned value for '{name}'")))
        }
    }
}

fn failed(verb: &str, error: Error) -> Failure {
    Failure::Line(format!("{verb} failed: {}", error.errno_text()))
}

fn too_long(limit: u64, given: &str) -> Failure {
    Failure::Line(format!("length cannot exceed {limit}, given {given}"))
}

fn describe(
    done: &'static str,
    failed: &'static str,
    offset: u64,
    len: u64,
    parsed: &Parsed<'_>,
) -> Described {
    let style = match (parsed.has('q'), parsed.has('C')) {
        (true, _) => Style::Quiet,
        (false, true) => Style::Machines,
        (false, false) => Style::People,
    };
    let (data, check, dump) = (IoVec::new(), None, parsed.has('v'));
    Described { done, failed, offset, len, style, data, check, dump }
}

fn pattern(parsed: &Parsed<'_>) -> Result<Option<u8>, Failure> {
    parsed.value('P').map(pattern_byte).transpose()
}

fn pattern_byte(text: &str) -> Result<u8, Failure> {
    let invalid = || Failure::Line(format!("{text} is not a valid pattern byte"));
    number::parse_pattern(text).ok_or_else(invalid)
}

/// The offset and the lengths of the buffers after it.
fn offset_and_lens(parsed: &Parsed<'_>) -> Result<(u64, Vec<u64>), Failure> {
    let Some((offset, texts)) = parsed.args.split_first().filter(|(_, lens)| !lens.is_empty())
    else {
        return Err(Failure::Usage(None));
    };
    let offset = size(offset)?;
    let (mut lens, mut total) = (Vec::with_capacity(texts.len()), 0u64);
    for text in texts {
        let len = size(text)?;
        if len > MAX_REQUEST_BYTES {
            let line = format!("Argument '{text}' exceeds maximum size {MAX_REQUEST_BYTES}");
            return Err(Failure::Line(line));
        }
        total += len;
        if total > MAX_REQUEST_BYTES {
            return Err(Failure::Line(format!(
                "The total number of bytes exceed the maximum size {MAX_REQUEST_BYTES}"
            )));
        }
        lens.push(len);
    }
    Ok((offset, lens))
}

fn refuse_write_options(parsed: &Parsed<'_>) -> Result<(), Failure> {
    let has = |letter| parsed.has(letter);
    let sources = [has('z'), has('P'), has('s')].iter().filter(|given| **given).count();
    let refused = if has('b') && has('z') {
        "-b and -z cannot be specified at the same time"
    } else if has('f') && (has('b') || has('c')) {
        "-f and -b or -c cannot be specified at the same time"
    } else if has('n') && !has('z') {
        "-n requires -z to be specified"
    } else if has('u') && !has('z') {
        "-u requires -z to be specified"
    } else if has('r') && has('z') {
        "cannot combine zero write with registered I/O buffer"
    } else if sources > 1 {
        "Only one of -z, -P, and -s can be specified at the same time"
    } else {
        return Ok(());
    };
    Err(Failure::Line(refused.to_owned()))
}

fn write_flags(parsed: &Parsed<'_>) -> RequestFlags {
    let zeroes = parsed.has('z');
    let mut flags = RequestFlags::empty();
    flags.set(RequestFlags::FUA, parsed.has('f'));
    flags.set(RequestFlags::MAY_UNMAP, parsed.has('u'));
    flags.set(RequestFlags::NO_FALLBACK, parsed.has('n'));
    // Zeroes take no space as it is.
    flags.set(RequestFlags::COMPRESSED, parsed.has('c') && !zeroes);
    flags
}

/// The first `len` bytes of a file, or all of it if it is shorter.
fn read_source(path: &str, len: u64) -> Result<Vec<u8>, Failure> {
    let complain = |what: String| Failure::Complaint(format!("{path}: {what}"));
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(len).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(complain(Error::from(error).errno_text())),
        Ok(0) if len > 0 => Err(complain("file is empty".to_owned())),
        Ok(_) => Ok(bytes),
    }
}

/// Fills a vector with `bytes`, over and over; leaves it alone if there are none.
fn repeat(bytes: &[u8], iov: &IoVec) {
    let mut done = 0;
    while done < iov.len() && !bytes.is_empty() {
        let n = bytes.len().min(iov.len() - done);
        iov.copy_from(done, bytes.get(..n).unwrap_or(bytes));
        done += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_repeated_to_the_end() {
        let buf = |len| IoBuf::zeroed(len, Alignment::ONE).unwrap();
        let iov: IoVec = [buf(3), buf(5)].into_iter().collect();
        repeat(b"abc", &iov);
        assert_eq!(iov.to_vec(), b"abcabcab");
        repeat(b"", &iov);
        assert_eq!(iov.len(), 8);
    }
}
