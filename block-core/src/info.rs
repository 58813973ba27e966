//! What `info` shows of a node, as data: the command line chooses the layout.

/// A value in [`DriverInfo::specific`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InfoValue {
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(u64),
    /// A text.
    Text(String),
    /// Values in order.
    List(Vec<Self>),
    /// Named values in order.
    Map(Vec<(&'static str, Self)>),
}

/// What a driver says of the image it has open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DriverInfo {
    /// Where the data is, as the user named it (protocol drivers).
    pub filename: Option<String>,
    /// Allocation unit in bytes.
    pub cluster_size: Option<u64>,
    /// The smallest part of an allocation unit that is allocated by itself, where that is less.
    pub subcluster_size: Option<u64>,
    /// Bytes the storage holds for it (protocol drivers).
    pub actual_size: Option<u64>,
    /// Backing file name as it stands in the image.
    pub backing_filename: Option<String>,
    /// Backing file format as it stands in the image.
    pub backing_format: Option<String>,
    /// Whether the image was not closed properly.
    pub dirty: bool,
    /// Whether guest data is encrypted.
    pub encrypted: bool,
    /// Whether guest data may be compressed.
    pub compressed: bool,
    /// Named values of this format alone, in the order and with the names that scripts know.
    pub specific: Vec<(&'static str, InfoValue)>,
}

impl DriverInfo {
    /// What a filter says of itself where it is above the node of which this is said: allocation units and marks
    /// hold for both, names, storage and values of the format for the node alone.
    pub fn of_filter(self) -> Self {
        Self {
            filename: None,
            actual_size: None,
            backing_filename: None,
            backing_format: None,
            specific: Vec::new(),
            ..self
        }
    }
}

/// One internal snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotInfo {
    /// Unique id, usually a decimal number.
    pub id: String,
    /// Name given by the user.
    pub name: String,
    /// Bytes of saved machine state.
    pub vm_state_size: u64,
    /// When it was taken: seconds since 1970.
    pub date_seconds: u64,
    /// Nanoseconds part of the date.
    pub date_nanoseconds: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Instruction count of a recorded run, where there is one.
    pub instruction_count: Option<u64>,
    /// Length of the disk at that time, where the image says so.
    pub disk_len: Option<u64>,
}
