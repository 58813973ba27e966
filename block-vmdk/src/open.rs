//! Opening an image: descriptor, extents, parent.
//!
//! Order: the file, its descriptor, the extents that the descriptor names, the parent. **Invariants.**
//! A name inside the image is a plain file in the descriptor's directory, unless the user allows others;
//! a parent whose content id is not the one that the image was made on is refused; what cannot be
//! written is refused when it is opened for writing. Opened for a check, an image is refused only where there is
//! nothing to check; what others would be refused for is kept for the report.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::error::Problem;
use block_core::metadata::bytes::read_bytes;
use block_core::range::MAX_LEN;
use block_core::registry::{BACKING_FILE, OpenContext, ReferencePolicy};
use block_core::{ByteRange, Node, OpenError, Options};
use futures::future::BoxFuture;

use crate::check::chain::{OpeningFaults, ParentFault};
use crate::check::examine::examine;
use crate::descriptor::{
    Access, DESCRIPTOR_BYTES_MAX, Descriptor, Extent, ExtentKind, PARENT_HINT,
};
use crate::driver::VmdkDriver;
use crate::error::{FORMAT, bad_field};
use crate::extent::layout::{BadTables, Header, SparseLayout};
use crate::extent::sparse::{Discards, SparseExtent, SparseParts};
use crate::extent::{Body, DiskExtent};
use crate::identity::{Identity, Place};
use crate::probe::{FileKind, probe};
use crate::spec::sparse::GD_ENTRIES_MAX;
use crate::units::{ContentId, Sector, SectorCount};

/// The role of an extent's file in errors.
const EXTENT: &str = "extent";
/// Most entries of grain directories that are in memory for all extents of a disk: what one extent may
/// have.
const GD_ENTRIES_SUM_MAX: u64 = GD_ENTRIES_MAX;
/// Most extents of a disk.
pub(crate) const EXTENTS_MAX: usize = 4096;

/// What the user says about the files that the image refers to.
struct ReferenceOptions {
    backing: Options,
    /// The user wants no backing file (`backing=`).
    no_backing: bool,
    /// Options of extents by number.
    extents: Options,
    /// Extents may be outside of the descriptor's directory.
    outside: bool,
}

impl ReferenceOptions {
    fn take(options: &mut Options) -> Result<Self, OpenError> {
        let no_backing = match options.take("backing").as_deref() {
            None => false,
            Some("" | "null") => true,
            Some(_) => {
                let what = "a backing file by node name";
                return Err(OpenError::Unsupported { driver: FORMAT, what });
            }
        };
        Ok(Self {
            backing: options.take_sub("backing"),
            no_backing,
            extents: options.take_sub("extents"),
            outside: options.take_bool("allow-outside-extents")?.unwrap_or(false),
        })
    }
}

/// An extent that is not open yet.
struct Planned {
    access: Access,
    sectors: SectorCount,
    source: Source,
}

/// Where an extent's bytes are.
enum Source {
    Zero,
    /// In the image's own file.
    Own(Box<SparseLayout>),
    /// In a file of this name.
    File {
        name: String,
        kind: ExtentKind,
        offset: Sector,
    },
}

/// Opens an image.
pub(crate) fn open(
    options: Options,
    context: OpenContext,
) -> BoxFuture<'static, Result<Arc<dyn BlockDriver>, OpenError>> {
    Box::pin(open_here(options, context))
}

async fn open_here(
    mut options: Options,
    mut context: OpenContext,
) -> Result<Arc<dyn BlockDriver>, OpenError> {
    let mut references = ReferenceOptions::take(&mut options)?;
    let file = context.open_child(&mut options, "file").await?;
    options.finish()?;
    let (identity, planned) = read_plan(&context, &file).await?;
    let mut faults = OpeningFaults::default();
    let backing = match &identity {
        Some(identity) if context.flags.check => {
            examine_backing(&context, &file, identity, &references, &mut faults).await
        }
        Some(identity) => open_backing(&context, &file, identity, &references).await?,
        None => None,
    };
    let mut opening = Opening { context: &context, own: &file, backing, faults, gd_entries: 0 };
    let extents = opening.open_extents(planned, &mut references).await?;
    let Opening { backing, faults, .. } = opening;
    if let Some((option, _)) = references.extents.iter().next() {
        let option = format!("extents.{option}");
        return Err(OpenError::Option { option, problem: Problem::Unknown });
    }
    let driver = VmdkDriver::new(file, identity, extents, backing, context);
    Ok(driver.with_faults(faults))
}

/// The descriptor, if there is one, and the extents.
async fn read_plan(
    context: &OpenContext,
    file: &Node,
) -> Result<(Option<Identity>, Vec<Planned>), OpenError> {
    let failed = |error| OpenError::Request { what: "descriptor", error };
    let head = ByteRange::up_to(file.len().min(block_core::registry::PROBE_BYTES));
    let head = read_bytes(file, head).await.map_err(failed)?;
    if matches!(probe(&head), Some(FileKind::HostedSparse | FileKind::Cowd)) {
        let layout = read_layout(context, file).await?;
        let identity = Identity::read_embedded(file, layout.descriptor).await?;
        let sectors = SectorCount(layout.geometry.len() / 512);
        let source = Source::Own(Box::new(layout));
        return Ok((identity, vec![Planned { access: Access::ReadWrite, sectors, source }]));
    }
    // A byte more than is allowed, so that more is seen: a device goes on behind its descriptor.
    let most = block_core::range::to_u64(DESCRIPTOR_BYTES_MAX) + 1;
    let text = ByteRange::up_to(file.len().min(most));
    let bytes = read_bytes(file, text).await.map_err(failed)?;
    let descriptor = Descriptor::parse(&bytes)?;
    descriptor.check_create_type()?;
    if descriptor.extents().len() > EXTENTS_MAX {
        let count = block_core::range::to_u64(descriptor.extents().len());
        let problem = Problem::Above(block_core::range::to_u64(EXTENTS_MAX));
        return Err(bad_field("number of extents", count, problem));
    }
    let planned = descriptor.extents().iter().map(plan_extent).collect::<Result<_, _>>()?;
    Ok((Some(Identity::new(file.clone(), Place::File, descriptor)), planned))
}

/// The layout of a sparse extent; for a check, as far as it can be told.
async fn read_layout(context: &OpenContext, file: &Node) -> Result<SparseLayout, OpenError> {
    match context.flags.check {
        true => Ok(examine(file).await?.layout),
        false => SparseLayout::read(file).await,
    }
}

fn plan_extent(extent: &Extent) -> Result<Planned, OpenError> {
    let source = match (extent.kind, extent.access) {
        (ExtentKind::VmfsRdm | ExtentKind::VmfsRaw, _) => {
            let names = format!("extents of type {}", extent.kind.name());
            return Err(OpenError::UnsupportedFeature { format: FORMAT, names });
        }
        // Nobody may look at it.
        (ExtentKind::Zero, _) | (_, Access::None) => Source::Zero,
        (kind, _) => {
            let name = String::from_utf8(extent.file_name.clone()).map_err(|_| {
                let name = extent.file_name.escape_ascii().to_string();
                OpenError::Reference { name, problem: Problem::NotText }
            })?;
            Source::File { name, kind, offset: extent.offset.unwrap_or_default() }
        }
    };
    Ok(Planned { access: extent.access, sectors: extent.sectors, source })
}

async fn open_backing(
    context: &OpenContext,
    file: &Node,
    identity: &Identity,
    references: &ReferenceOptions,
) -> Result<Option<Node>, OpenError> {
    let given = references.backing.clone();
    let (parent, hint) = identity.with(|descriptor| {
        let hint = descriptor.value(PARENT_HINT).map(<[u8]>::to_vec);
        (descriptor.parent_content_id(), hint)
    });
    let flags = context.flags;
    let wanted = parent.is_some() || !given.is_empty();
    if !wanted || references.no_backing || flags.no_io || flags.no_backing {
        return Ok(None);
    }
    let name = match hint {
        Some(hint) => String::from_utf8(hint).map_err(|bytes| {
            let name = bytes.as_bytes().escape_ascii().to_string();
            OpenError::Reference { name, problem: Problem::NotText }
        })?,
        None if given.is_empty() => {
            let option = PARENT_HINT.to_owned();
            return Err(OpenError::Option { option, problem: Problem::Missing });
        }
        None => String::new(),
    };
    let opened = context.open_reference(BACKING_FILE, file, &name, Some(FORMAT), given).await?;
    if let (Some(parent), Some(found)) = (parent, content_id_of(&opened))
        && parent != found
    {
        let problem = Problem::Contradicts("the content id of the parent, which was changed since");
        return Err(bad_field("parentCID", parent.0.into(), problem));
    }
    Ok(Some(opened))
}

/// Opens the parent for a check: what is wrong with it is noted. Where only metadata is asked for, it is
/// closed again, and its own parent is left alone.
async fn examine_backing(
    context: &OpenContext,
    file: &Node,
    identity: &Identity,
    references: &ReferenceOptions,
    faults: &mut OpeningFaults,
) -> Option<Node> {
    let given = references.backing.clone();
    let (parent, hint) = identity.with(|descriptor| {
        let hint = descriptor.value(PARENT_HINT).map(<[u8]>::to_vec);
        (descriptor.parent_content_id(), hint)
    });
    if references.no_backing || (parent.is_none() && given.is_empty()) {
        return None;
    }
    let stays = !(context.flags.no_io || context.flags.no_backing);
    let mut context = context.clone();
    context.flags.check = false;
    context.flags.no_backing |= !stays;
    let name = String::from_utf8_lossy(&hint.unwrap_or_default()).into_owned();
    let opened = context.open_reference(BACKING_FILE, file, &name, Some(FORMAT), given).await;
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            faults.parent = Some(ParentFault::Missing(error.to_string()));
            return None;
        }
    };
    if let (Some(expected), Some(found)) = (parent, content_id_of(&opened))
        && expected != found
    {
        faults.parent = Some(ParentFault::Changed { expected, found });
    }
    Some(opened).filter(|_| stays)
}

/// The content id of an open image, if it has one.
pub(crate) fn content_id_of(node: &Node) -> Option<ContentId> {
    if node.driver().name() != FORMAT {
        return None;
    }
    let info = node.driver().info();
    info.specific.iter().find_map(|(name, value)| match (name, value) {
        (&"cid", block_core::info::InfoValue::Int(id)) => u32::try_from(*id).ok().map(ContentId),
        _ => None,
    })
}

/// An image that is being opened.
struct Opening<'a> {
    context: &'a OpenContext,
    /// The image's own file.
    own: &'a Node,
    backing: Option<Node>,
    faults: OpeningFaults,
    /// Entries of all directories so far.
    gd_entries: u64,
}

/// The file of an extent, and what of it extents have.
struct ExtentFile {
    node: Node,
    /// With whether it is written to.
    taken: Vec<(ByteRange, bool)>,
}

impl ExtentFile {
    /// Notes that an extent has `part` of the file; says whether another one has some of it, and one of
    /// the two is written to.
    fn take(&mut self, part: ByteRange, writes: bool) -> bool {
        let clash = |(other, written): &(ByteRange, bool)| {
            (writes || *written) && !other.intersect(part).is_empty()
        };
        let clashes = self.taken.iter().any(clash);
        self.taken.push((part, writes));
        clashes
    }
}

impl Opening<'_> {
    async fn open_extents(
        &mut self,
        planned: Vec<Planned>,
        references: &mut ReferenceOptions,
    ) -> Result<Vec<DiskExtent>, OpenError> {
        let mut files: HashMap<String, ExtentFile> = HashMap::new();
        let (mut extents, mut start) = (Vec::new(), 0u64);
        for (number, plan) in planned.into_iter().enumerate() {
            let too_large = || bad_field("sectors of an extent", plan.sectors.0, Problem::Unknown);
            let len = plan.sectors.bytes().ok_or_else(too_large)?;
            let mut range = ByteRange::new(start, len).map_err(|_| too_large())?;
            let given = references.extents.take_sub(&number.to_string());
            if len == 0 {
                continue;
            }
            let access = plan.access;
            let body = match plan.source {
                Source::Zero => Body::Zero,
                Source::Own(layout) => {
                    self.open_sparse(self.own.clone(), *layout, range, access).await?
                }
                Source::File { name, kind, offset } => {
                    let file = match files.entry(name.clone()) {
                        Entry::Occupied(file) => file.into_mut(),
                        Entry::Vacant(place) => {
                            let (context, own) = (self.context, self.own);
                            let (name, outside) = (place.key(), references.outside);
                            let opened = open_file(context, own, name, access, given, outside);
                            let node = opened.await?;
                            place.insert(ExtentFile { node, taken: Vec::new() })
                        }
                    };
                    let offset = offset.offset().ok_or_else(too_large)?;
                    let part = match kind {
                        ExtentKind::Flat | ExtentKind::Vmfs => ByteRange::new(offset, len),
                        // Grains may be anywhere in it.
                        _ => Ok(ByteRange::up_to(MAX_LEN)),
                    };
                    let writes = writing(self.context, access).is_some();
                    if file.take(part.map_err(|_| too_large())?, writes) {
                        return Err(shared_file(number, name));
                    }
                    let node = file.node.clone();
                    match kind {
                        ExtentKind::Flat | ExtentKind::Vmfs => Body::Flat { node, offset },
                        _ => {
                            let layout = read_layout(self.context, &node).await?;
                            check_kind(kind, &layout)?;
                            range = range.first(self.check_capacity(number, len, &layout)?);
                            self.open_sparse(node, layout, range, access).await?
                        }
                    }
                }
            };
            extents.push(DiskExtent { range, access, body });
            start = range.end();
        }
        Ok(extents)
    }

    async fn open_sparse(
        &mut self,
        file: Node,
        layout: SparseLayout,
        range: ByteRange,
        access: Access,
    ) -> Result<Body, OpenError> {
        check_writable(self.context, access, &layout)?;
        let writing = writing(self.context, access);
        // Who writes must know of all that is in the file.
        let gd_entries = match writing {
            Some(_) => layout.geometry.table_count(),
            None => range.len().div_ceil(layout.geometry.coverage()),
        };
        self.gd_entries += gd_entries;
        if self.gd_entries > GD_ENTRIES_SUM_MAX {
            let field = "grain directory entries of all extents";
            return Err(bad_field(field, self.gd_entries, Problem::Above(GD_ENTRIES_SUM_MAX)));
        }
        let parts = SparseParts {
            file,
            layout,
            gd_entries,
            start: range.offset(),
            backing: self.backing.clone(),
            budget: Arc::clone(&self.context.budget),
            writing,
            bad_tables: match self.context.flags.check {
                true => BadTables::Unreadable,
                false => BadTables::Refused,
            },
        };
        Ok(Body::Sparse(Arc::new(SparseExtent::open(parts).await?)))
    }

    /// How many of the `len` bytes that the descriptor says an extent has.
    fn check_capacity(
        &mut self,
        number: usize,
        len: u64,
        layout: &SparseLayout,
    ) -> Result<u64, OpenError> {
        let has = layout.geometry.len();
        if has >= len {
            return Ok(len);
        }
        if !self.context.flags.check {
            let problem = Problem::Contradicts("the extent in the descriptor");
            return Err(bad_field("capacity", has / 512, problem));
        }
        self.faults.short.push((number, has / 512, len / 512));
        Ok(has)
    }
}

/// An extent has what another one has, and one of the two is written to.
fn shared_file(number: usize, name: String) -> OpenError {
    let number = block_core::range::to_u64(number);
    let problem = Problem::Contradicts("another extent, which has the same part of the file");
    let source = Box::new(bad_field("number of an extent", number, problem));
    OpenError::Child { role: EXTENT, name, source }
}

/// Opens the file of an extent, which is never probed for a format.
async fn open_file(
    context: &OpenContext,
    own: &Node,
    name: &str,
    access: Access,
    given: Options,
    outside: bool,
) -> Result<Node, OpenError> {
    let mut context = context.clone();
    context.flags.writable &= access == Access::ReadWrite;
    if !outside && context.policy == ReferencePolicy::PlainFiles {
        context.policy = ReferencePolicy::SameDirectory;
    }
    let protocol = context.registry.protocol_of(given.peek("filename").unwrap_or_default())?;
    context.open_reference(EXTENT, own, &extent_file(name), Some(protocol), given).await
}

/// The name of an extent as a reference: it is a file's, though there be a colon in it. What is no file to
/// anybody is left to be refused.
pub(crate) fn extent_file(name: &str) -> Cow<'_, str> {
    let is_none = name.starts_with("json:") || name.contains("://");
    if name.contains(':') && !is_none { format!("file:{name}").into() } else { name.into() }
}

fn writing(context: &OpenContext, access: Access) -> Option<Discards> {
    let flags = context.flags;
    let writes = flags.writable && !flags.check && !flags.no_io && access == Access::ReadWrite;
    let discards = if flags.unmap { Discards::Pass } else { Discards::Keep };
    writes.then_some(discards)
}

fn check_kind(kind: ExtentKind, layout: &SparseLayout) -> Result<(), OpenError> {
    let fits = matches!(
        (kind, &layout.header),
        (ExtentKind::Sparse, Header::Hosted(_))
            | (ExtentKind::VmfsSparse, Header::Cowd(_))
            | (ExtentKind::SeSparse, Header::SeSparse(_))
    );
    if fits {
        return Ok(());
    }
    let problem = format!("an extent of type {} has another header", kind.name());
    Err(OpenError::Text { format: FORMAT, what: "descriptor", problem })
}

/// Refuses to write to what is only written once, or by others.
fn check_writable(
    context: &OpenContext,
    access: Access,
    layout: &SparseLayout,
) -> Result<(), OpenError> {
    if writing(context, access).is_none() {
        return Ok(());
    }
    let names = match &layout.header {
        Header::SeSparse(_) => "writing to a seSparse extent",
        Header::Hosted(header) if header.is_compressed() || header.has_markers() => {
            "writing to a streamOptimized image (it is written once, from start to end)"
        }
        Header::Hosted(header) if header.version() == 3 => "writing to a version 3 extent",
        Header::Hosted(_) | Header::Cowd(_) => return Ok(()),
    };
    Err(OpenError::UnsupportedFeature { format: FORMAT, names: names.to_owned() })
}
