//! `iscsi`: what a portal has to offer.
//!
//! Invariant: a target or a unit that cannot be asked is told of and makes the exit status 1; the others are
//! listed all the same.

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use block_core::options::Options;
use block_iscsi::config::IscsiConfig;
use block_iscsi::initiator::{DiscoveryError, Initiator, TargetAddress, discover, random_isid};
use block_iscsi::login::SessionTarget;
use block_iscsi::nexus::Nexus;
use block_iscsi::scsi::inquiry::{Inquiry, Qualifier};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::session::SessionConfig;
use block_iscsi::transport::Connector;
use block_iscsi::transport::Portal;
use block_iscsi::transport::tcp::TcpConnector;
use block_iscsi::unit::{ConnectorSleep, Retries, Unit, UnitError};
use block_iscsi::url::PortalUrl;

use crate::open::block_on;
use crate::spec::shown;

use super::common::OutputFormat;
use super::json::Json;
use super::{Failure, Output};

/// Ask iSCSI portals.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the targets of a portal.
    Ls(Ls),
}

/// List the targets of a portal.
#[derive(clap::Args)]
#[command(args_override_self = true)]
#[command(after_help = "User and secrets that are not given are taken from the environment: \
    LIBISCSI_CHAP_USERNAME, LIBISCSI_CHAP_PASSWORD, LIBISCSI_CHAP_TARGET_USERNAME, \
    LIBISCSI_CHAP_TARGET_PASSWORD.")]
struct Ls {
    /// List the logical units of each target, too.
    #[arg(short, long)]
    show_luns: bool,
    /// Layout of the output.
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// Name of this initiator.
    #[arg(short, long, value_name = "IQN")]
    initiator_name: Option<String>,
    /// Name for CHAP.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File that holds the secret for CHAP.
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
    /// Name that the target has to give.
    #[arg(long, value_name = "NAME")]
    target_user: Option<String>,
    /// File that holds the target's secret: it has to prove who it is.
    #[arg(long, value_name = "FILE")]
    target_password_file: Option<String>,
    /// Digests of headers (none, crc32c, none-crc32c, crc32c-none).
    #[arg(long, value_name = "DIGESTS")]
    header_digest: Option<String>,
    /// Digests of data (none, crc32c, none-crc32c, crc32c-none).
    #[arg(long, value_name = "DIGESTS")]
    data_digest: Option<String>,
    /// Longest time of a command in seconds (default: for ever).
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<String>,
    /// The portal, and the only target to list: iscsi://[user[%password]@]host[:port][/target].
    #[arg(value_name = "URL")]
    urls: Vec<String>,
}

/// Runs the command.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    match &args.command {
        Command::Ls(args) => args.run(out),
    }
}

impl Ls {
    fn run(&self, out: &mut Output) -> Result<u8, Failure> {
        let [text] = self.urls.as_slice() else {
            return Err(Failure::usage("iscsi ls", "Expecting the URL of one portal"));
        };
        let failed =
            |what: &dyn fmt::Display| Failure::new(format_args!("{}: {what}", shown(text)));
        let url = PortalUrl::parse(text).map_err(|error| failed(&error))?;
        let isid = random_isid().map_err(|error| failed(&error))?;
        let env = |name: &str| std::env::var(name).ok();
        let config = IscsiConfig::discovery(&url, self.options(), &env, isid);
        let config = config.map_err(|error| failed(&error))?;
        let found = block_on(self.list(config, url.target())).map_err(|error| failed(&error))?;
        match self.output {
            OutputFormat::Human => found.iter().try_for_each(|place| place.print(out))?,
            OutputFormat::Json => {
                let list = Json::List(found.iter().map(Place::to_json).collect());
                writeln!(out, "{}", list.to_pretty())?;
            }
        }
        let mut complaints = found.iter().flat_map(|place| &place.complaints).peekable();
        let Some(last) = complaints.next_back() else { return Ok(0) };
        for complaint in complaints {
            Failure::new(complaint).report();
        }
        Err(Failure::new(last))
    }

    /// What the driver `iscsi` knows by the same names.
    fn options(&self) -> Options {
        let mut options = Options::new();
        for (name, value) in [
            ("initiator-name", &self.initiator_name),
            ("user", &self.user),
            ("password-file", &self.password_file),
            ("target-user", &self.target_user),
            ("target-password-file", &self.target_password_file),
            ("header-digest", &self.header_digest),
            ("data-digest", &self.data_digest),
            ("timeout", &self.timeout),
        ] {
            if let Some(value) = value {
                options.set(name, value.clone());
            }
        }
        options
    }

    /// Asks for the targets, and each of them for its units.
    async fn list(
        &self,
        config: SessionConfig,
        only: Option<&str>,
    ) -> Result<Vec<Place>, DiscoveryError> {
        let connector: Arc<dyn Connector> = Arc::new(TcpConnector::new());
        let asked = TargetAddress { portal: config.portal.clone(), group: 1 };
        let mut found = Vec::new();
        for target in discover(config.clone(), Arc::clone(&connector)).await? {
            if only.is_some_and(|only| only != target.name) {
                continue;
            }
            let mut addresses = target.addresses;
            if addresses.is_empty() {
                addresses.push(asked.clone());
            }
            for address in addresses {
                let mut place = Place::new(target.name.clone(), address);
                if self.show_luns {
                    place.ask(config.clone(), &connector).await;
                }
                found.push(place);
            }
        }
        Ok(found)
    }
}

/// A target at one of its portals.
struct Place {
    target: String,
    address: TargetAddress,
    /// `None`: nobody has asked, or was answered.
    luns: Option<Vec<Found>>,
    /// What could not be found out.
    complaints: Vec<String>,
}

/// A logical unit.
struct Found {
    lun: Lun,
    /// `None`: it did not say.
    inquiry: Option<Inquiry>,
    /// Length of the disk in bytes.
    size: Option<u64>,
}

impl Place {
    fn new(target: String, address: TargetAddress) -> Self {
        Self { target, address, luns: None, complaints: Vec::new() }
    }

    /// Logs in and asks for the units.
    async fn ask(&mut self, mut config: SessionConfig, connector: &Arc<dyn Connector>) {
        config.portal = self.address.portal.clone();
        config.target = SessionTarget::Normal(self.target.clone());
        let initiator = match Initiator::connect(config, Arc::clone(connector)).await {
            Ok(initiator) => Arc::new(initiator),
            Err(error) => return self.complain("login", &error),
        };
        let sleep = Arc::new(ConnectorSleep::new(Arc::clone(connector)));
        let nexus: Arc<dyn Nexus> = initiator;
        let unit = |lun| Unit::new(Arc::clone(&nexus), lun, sleep.clone(), Retries::default());
        // REPORT LUNS goes to LUN 0, whatever there is (SPC-4 6.33).
        match unit(Lun([0; 8])).report_luns().await {
            Ok(luns) => {
                let mut all = Vec::new();
                for lun in luns {
                    all.push(self.describe(&unit(lun)).await);
                }
                self.luns = Some(all);
            }
            Err(error) => self.complain("REPORT LUNS", &error),
        }
        nexus.close().await;
    }

    async fn describe(&mut self, unit: &Unit) -> Found {
        let mut found = Found { lun: unit.lun(), inquiry: None, size: None };
        match unit.inquiry().await {
            Ok(inquiry) => found.inquiry = Some(inquiry),
            Err(error) => self.complain(&format!("LUN {}: INQUIRY", Number(found.lun)), &error),
        }
        if found.inquiry.as_ref().is_some_and(Inquiry::is_disk) {
            match unit.capacity().await {
                Ok(capacity) => found.size = Some(capacity.len()),
                // No medium is no fault.
                Err(UnitError::Sense { .. }) => {}
                Err(error) => {
                    self.complain(&format!("LUN {}: READ CAPACITY", Number(found.lun)), &error);
                }
            }
        }
        found
    }

    fn complain(&mut self, what: &str, error: &dyn fmt::Display) {
        self.complaints.push(format!("{} at {}: {what}: {error}", self.target, self.portal()));
    }

    fn portal(&self) -> String {
        let Portal { host, port } = &self.address.portal;
        format!("{host}:{port}")
    }

    fn print(&self, out: &mut Output) -> Result<(), Failure> {
        let group = self.address.group;
        writeln!(out, "Target:{} Portal:{},{group}", self.target, self.portal())?;
        for found in self.luns.iter().flatten() {
            write!(out, "Lun:{:<4} Type:{}", Number(found.lun).to_string(), found.kind())?;
            match found.size {
                Some(size) => writeln!(out, " (Size:{})", short_size(size))?,
                None => writeln!(out)?,
            }
        }
        Ok(())
    }

    fn to_json(&self) -> Json {
        let mut map = vec![
            ("target", Json::from(self.target.as_str())),
            ("portal", Json::Text(self.portal())),
            ("group", Json::Int(self.address.group.into())),
        ];
        if let Some(luns) = &self.luns {
            map.push(("luns", Json::List(luns.iter().map(Found::to_json).collect())));
        }
        Json::Map(map)
    }
}

impl Found {
    fn to_json(&self) -> Json {
        let number = match self.lun.number() {
            Some(number) => Json::Int(number.into()),
            None => Json::Text(Number(self.lun).to_string()),
        };
        let mut map = vec![("lun", number), ("type", Json::from(self.kind()))];
        if let Some(inquiry) = &self.inquiry {
            map.push(("vendor", Json::from(inquiry.vendor.as_str())));
            map.push(("product", Json::from(inquiry.product.as_str())));
        }
        map.extend(self.size.map(|size| ("size", Json::Int(size))));
        Json::Map(map)
    }

    /// The peripheral device type (SPC-4, table 138) as `iscsi-ls` spells it.
    fn kind(&self) -> &'static str {
        match &self.inquiry {
            Some(inquiry) if inquiry.qualifier == Qualifier::Present => {
                let named = KINDS.iter().find(|(code, _)| *code == inquiry.device_type);
                named.map_or("unknown", |(_, name)| name)
            }
            _ => "unknown",
        }
    }
}

/// A LUN as people count them; in hexadecimal digits where it is no plain number.
struct Number(Lun);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.number() {
            Some(number) => write!(f, "{number}"),
            None => write!(f, "{:#018x}", u64::from_be_bytes(self.0.0)),
        }
    }
}

/// Whole units of 1024, rounded down: `63M`.
fn short_size(bytes: u64) -> String {
    let mut size = bytes;
    let mut unit = "";
    for larger in ["k", "M", "G", "T", "P"] {
        if size < 1024 {
            break;
        }
        size /= 1024;
        unit = larger;
    }
    format!("{size}{unit}")
}

const KINDS: &[(u8, &str)] = &[
    (0x00, "DIRECT_ACCESS"),
    (0x01, "SEQUENTIAL_ACCESS"),
    (0x02, "PRINTER"),
    (0x03, "PROCESSOR"),
    (0x04, "WRITE_ONCE"),
    (0x05, "MMC"),
    (0x06, "SCANNER"),
    (0x07, "OPTICAL_MEMORY"),
    (0x08, "MEDIA_CHANGER"),
    (0x09, "COMMUNICATIONS"),
    (0x0c, "STORAGE_ARRAY_CONTROLLER"),
    (0x0d, "ENCLOSURE_SERVICES"),
    (0x0e, "SIMPLIFIED_DIRECT_ACCESS"),
    (0x0f, "OPTICAL_CARD_READER"),
    (0x10, "BRIDGE_CONTROLLER"),
    (0x11, "OSD"),
    (0x12, "AUTOMATION"),
    (0x13, "SECURITY_MANAGER"),
    (0x1e, "WELL_KNOWN_LUN"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_units() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1 << 26, "64M"),
            ((1 << 30) - 512, "1023M"),
            (u64::MAX, "16383P"),
        ] {
            assert_eq!(short_size(bytes), text);
        }
    }

    #[test]
    fn luns_that_are_no_numbers_are_shown_whole() {
        let well_known = Lun([0xc1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Number(well_known).to_string(), "0xc101000000000000");
        assert_eq!(Number(Lun::from_number(300).unwrap()).to_string(), "300");
    }
}
