//! Stored refcounts, of every width.

use block_core::Problem;

use super::Image;
use super::error::BadImage;

const RESERVED: u64 = 0x1ff;

impl Image<'_> {
    /// The stored refcount of a host cluster; 0 where no refcount block covers it.
    pub fn refcount(&self, cluster: u64) -> Result<u64, BadImage> {
        let per_block = self.refcounts_per_block();
        if cluster / per_block >= self.reftable_entries() {
            return Ok(0);
        }
        match self.refcount_block(cluster / per_block)? {
            Some(block) => Ok(self.refcount_in(block, cluster % per_block)),
            None => Ok(0),
        }
    }

    /// Entries of the refcount table.
    pub(super) fn reftable_entries(&self) -> u64 {
        u64::from(self.header.refcount_table_clusters) * self.header.cluster_size() / 8
    }

    /// Entries of a refcount block.
    pub(super) fn refcounts_per_block(&self) -> u64 {
        self.header.cluster_size() * 8 / u64::from(self.header.refcount_bits())
    }

    /// Where the refcount block `index` starts, if there is one.
    pub(super) fn refcount_block(&self, index: u64) -> Result<Option<u64>, BadImage> {
        let cluster = self.header.cluster_size();
        let value = self.file.u64(self.header.refcount_table_offset + index * 8);
        let problem = if value & RESERVED != 0 {
            Problem::Reserved(RESERVED)
        } else if !value.is_multiple_of(cluster) {
            Problem::Misaligned(cluster)
        } else {
            return Ok((value != 0).then_some(value));
        };
        Err(BadImage::Entry { table: "refcount table", index, value, problem })
    }

    /// Entry `index` of the refcount block at `block`; bit 0 of a byte is its lowest one.
    pub(super) fn refcount_in(&self, block: u64, index: u64) -> u64 {
        let (file, bits) = (self.file, u64::from(self.header.refcount_bits()));
        let at = block.saturating_add(index * bits / 8);
        match bits {
            8 => u64::from(file.u8(at)),
            16 => u64::from(file.u16(at)),
            32 => u64::from(file.u32(at)),
            64 => file.u64(at),
            _ => {
                let byte = u64::from(file.u8(at));
                byte >> (index * bits % 8) & ((1 << bits) - 1)
            }
        }
    }
}
