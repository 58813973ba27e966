//! Serves an iSCSI target in memory over TCP, for trying initiators by hand: `cargo xtask target`.
//!
//! It prints one line when it listens, and ends with a signal.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc;

use block_iscsi::chap::Secret;
use block_iscsi::keys::DigestKind;
use block_testkit::iscsi::serve::{Mischief, Server};
use block_testkit::iscsi::target::{Account, Admission, Moved, Target, TargetConfig};
use block_testkit::iscsi::{
    Access, Device, LunConfig, Medium, NoBlocks, Provisioning, SenseFormat, Unmapped,
};
use clap::Parser;

/// Serves an iSCSI target in memory.
#[derive(Parser)]
struct Arguments {
    /// Address and port; port 0 is a free one.
    #[arg(long, default_value = "127.0.0.1:3260")]
    listen: String,
    /// A unit, numbered from 0: `thin:SIZE` or `thick:SIZE`, then any of `,wp`, `,removable`,
    /// `,bs=512|4096`, `,lbprz=on|off`, `,granularity=BLOCKS`, `,alignment=BLOCKS`, `,serial=TEXT`,
    /// `,max-transfer=BLOCKS`, `,max-write-same=BLOCKS`, `,max-unmap=BLOCKS`, `,max-descriptors=COUNT`,
    /// `,sanitize-steps=COUNT`, `,physical=EXPONENT` (of blocks), `,write-same-zero` (to the end).
    #[arg(long, required = true, value_parser = parse_lun)]
    lun: Vec<LunConfig>,
    /// The target's name.
    #[arg(long, default_value = "iqn.2026-01.org.example:memory")]
    target: Vec<String>,
    /// What people call it.
    #[arg(long)]
    alias: Option<String>,
    /// An account for CHAP; without one everybody may log in.
    #[arg(long, requires = "password")]
    user: Option<String>,
    /// Its secret.
    #[arg(long)]
    password: Option<String>,
    /// The target's own name, for initiators that ask it to prove itself.
    #[arg(long, requires_all = ["user", "mutual_password"])]
    mutual_user: Option<String>,
    /// Its secret.
    #[arg(long)]
    mutual_password: Option<String>,
    /// Digests that are accepted: `None`, `CRC32C`, or both.
    #[arg(long, value_delimiter = ',', default_value = "None,CRC32C", value_parser = parse_digest)]
    header_digest: Vec<DigestKind>,
    /// Digests that are accepted: `None`, `CRC32C`, or both.
    #[arg(long, value_delimiter = ',', default_value = "None,CRC32C", value_parser = parse_digest)]
    data_digest: Vec<DigestKind>,
    /// Longest data segment that is taken, in bytes.
    #[arg(long)]
    max_recv: Option<u32>,
    /// MaxBurstLength.
    #[arg(long)]
    max_burst: Option<u32>,
    /// FirstBurstLength.
    #[arg(long)]
    first_burst: Option<u32>,
    /// MaxOutstandingR2T.
    #[arg(long)]
    max_r2t: Option<u16>,
    /// Takes data of writes only after asking for it.
    #[arg(long)]
    only_solicited: bool,
    /// How many commands may be under way.
    #[arg(long)]
    window: Option<u32>,
    /// Sends sense data in descriptor format.
    #[arg(long)]
    descriptor_sense: bool,
    /// Sends initiators to this `host:port`.
    #[arg(long)]
    redirect: Option<String>,
    /// Prints how often each operation code was seen when it ends.
    #[arg(long)]
    count: bool,
    /// Cuts each connection after so many PDUs.
    #[arg(long)]
    drop_after: Option<u64>,
}

fn main() -> ExitCode {
    match serve(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iscsi-target: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let (stop, stopped) = mpsc::channel();
    ctrlc::set_handler(move || {
        let _received = stop.send(());
    })?;
    let format =
        if arguments.descriptor_sense { SenseFormat::Descriptor } else { SenseFormat::Fixed };
    let mut device = Device::new(format);
    for (number, lun) in (0..).zip(&arguments.lun) {
        device.add(number, lun.clone())?;
    }
    let (units, count) = (arguments.lun.len(), arguments.count);
    let (listen, mischief) = (arguments.listen.clone(), arguments.mischief());
    let config = arguments.config();
    let name = config.names.join(" ");
    let server = Server::start_at(listen, Target::new(config, device), mischief)?;
    println!("listening on {}: {name}, {units} units", server.addr());
    std::io::stdout().flush()?;
    let _ended = stopped.recv();
    let target = server.stop();
    if count {
        for (opcode, action, count) in target.device().counters().iter() {
            let action = action.map(|action| format!("/{action:#04x}")).unwrap_or_default();
            println!("{opcode:#04x}{action} {count}");
        }
    }
    Ok(())
}

impl Arguments {
    fn mischief(&self) -> Mischief {
        Mischief { cut_after: self.drop_after }
    }

    fn config(self) -> TargetConfig {
        let mut config = TargetConfig::new("");
        config.names = self.target;
        config.alias = self.alias;
        config.moved = self.redirect.map(Moved::Temporarily);
        config.seed = rand::random();
        if let (Some(user), Some(password)) = (self.user, self.password) {
            let mut account = Account::new(&user, &password);
            account.mutual = self
                .mutual_user
                .zip(self.mutual_password)
                .map(|(user, secret)| (user, Secret::new(secret.as_bytes())));
            config.admission = Admission::Chap(vec![account]);
        }
        let limits = &mut config.limits;
        limits.header_digest = self.header_digest;
        limits.data_digest = self.data_digest;
        limits.max_recv_data_segment_len =
            self.max_recv.unwrap_or(limits.max_recv_data_segment_len);
        limits.max_burst_len = self.max_burst.unwrap_or(limits.max_burst_len);
        let first_burst = self.first_burst.unwrap_or(limits.first_burst_len);
        limits.first_burst_len = first_burst.min(limits.max_burst_len);
        limits.max_outstanding_r2t = self.max_r2t.unwrap_or(limits.max_outstanding_r2t);
        limits.window = self.window.unwrap_or(limits.window);
        if self.only_solicited {
            (limits.initial_r2t, limits.immediate_data) = (true, false);
        }
        config
    }
}

fn parse_digest(text: &str) -> Result<DigestKind, String> {
    let kinds = [DigestKind::None, DigestKind::Crc32c];
    let found = kinds.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("{text} is not a digest"))
}

fn parse_lun(text: &str) -> Result<LunConfig, String> {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let (kind, size) = first.split_once(':').ok_or("a unit is thin:SIZE or thick:SIZE")?;
    let size = parse_size(size)?;
    let mut lun = match kind {
        "thin" => LunConfig::thin(512, 1),
        "thick" => LunConfig::thick(512, 1),
        other => return Err(format!("{other} is neither thin nor thick")),
    };
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        apply(&mut lun, key, value)?;
    }
    lun.blocks = size / u64::from(lun.block_size);
    if lun.blocks == 0 || size % u64::from(lun.block_size) != 0 {
        return Err(format!("{size} bytes are not whole blocks of {}", lun.block_size));
    }
    Ok(lun)
}

fn apply(lun: &mut LunConfig, key: &str, value: &str) -> Result<(), String> {
    let number = || value.parse::<u32>().map_err(|_| format!("{key} cannot be {value:?}"));
    match key {
        "wp" => lun.access = Access::ReadOnly,
        "removable" => lun.medium = Medium::Removable,
        "serial" => lun.serial = value.to_owned(),
        "max-transfer" => lun.max_transfer = number()?,
        "max-write-same" => lun.max_write_same = number()?,
        "max-unmap" => lun.max_unmap_blocks = number()?,
        "max-descriptors" => lun.max_unmap_descriptors = number()?,
        "write-same-zero" => lun.no_blocks = NoBlocks::ToTheEnd,
        "physical" => {
            lun.physical_exponent =
                value.parse().map_err(|_| format!("{key} cannot be {value:?}"))?;
        }
        "sanitize-steps" => lun.sanitize_steps = number()?,
        "bs" => {
            let bytes = u64::from(lun.max_transfer) * u64::from(lun.block_size);
            lun.block_size = number()?;
            lun.max_transfer = u32::try_from(bytes / u64::from(lun.block_size.max(1)))
                .map_err(|_| format!("{key} cannot be {value:?}"))?;
        }
        _ => {
            let Provisioning::Thin { unmapped, granularity, alignment } = &mut lun.provisioning
            else {
                return Err(format!("{key} is nothing of a thick unit"));
            };
            match (key, value) {
                ("lbprz", "on") => *unmapped = Unmapped::Zeroes,
                ("lbprz", "off") => *unmapped = Unmapped::Junk,
                ("granularity", _) => *granularity = number()?,
                ("alignment", _) => *alignment = number()?,
                _ => return Err(format!("{key}={value} is not known")),
            }
        }
    }
    Ok(())
}

/// A number of bytes with a unit of 1024: `64M`, `1G`, `2T`.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}
