//! Another backing file in the header, and an image without data of its own.
//!
//! Both have an exclusive turn. **Invariant:** a crash while the image is emptied leaves every cluster
//! either as it was or as the backing file has it.

use async_trait::async_trait;
use block_core::ability::Rebase;
use block_core::error::Problem;
use block_core::io::exec::to_the_end;
use block_core::{Error, OpenError, Result};

use crate::driver::Qcow2Driver;
use crate::spec::bad_field;
use crate::writeback::Extent;

#[async_trait]
impl Rebase for Qcow2Driver {
    async fn change_backing(
        &self,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), OpenError> {
        let this = self.shared().map_err(failed)?;
        let (name, format) = (name.map(str::to_owned), format.map(str::to_owned));
        to_the_end(async move { this.set_backing(name, format).await }).await
    }

    async fn make_empty(&self) -> Result<()> {
        let this = self.shared()?;
        to_the_end(async move { this.drop_all_data().await }).await
    }
}

fn failed(error: Error) -> OpenError {
    OpenError::Request { what: "backing file", error }
}

impl Qcow2Driver {
    async fn set_backing(
        &self,
        name: Option<String>,
        format: Option<String>,
    ) -> Result<(), OpenError> {
        self.writer().map_err(failed)?;
        if self.has_raw_data_file() && name.is_some() {
            let problem = Problem::Contradicts("the raw data file");
            return Err(bad_field("backing file", 1, problem));
        }
        let _exclusive = self.alone().await.map_err(failed)?;
        self.clear_unknown().await.map_err(failed)?;
        let rewritten = self.header.rewrite(|parts| {
            parts.extensions.backing_format = format.filter(|_| name.is_some());
            parts.backing_name = name.map(String::into_bytes);
        });
        rewritten.await?;
        self.barrier().await.map_err(failed)
    }

    async fn drop_all_data(&self) -> Result<()> {
        self.distrust_bitmaps().await?;
        let _exclusive = self.alone().await?;
        self.event("empty_image_prepare");
        // What is about to go must not be in a write that is under way to the file.
        self.write_back(Extent::Flush).await?;
        for index in 0..self.l1_len() {
            self.relieve().await?;
            self.drop_table(index, 0).await?;
        }
        // What one round takes out of the tables is given back in the next.
        self.write_back(Extent::Everything).await?;
        self.write_back(Extent::Everything).await?;
        self.trim_file().await
    }
}
