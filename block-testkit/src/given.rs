//! Names that open what a test made: an image in memory refers to its files by them.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::{OpenError, Options};

/// A protocol by the name that plain names have. Nothing is opened by it: tests give all files.
pub struct NoFiles;

#[async_trait]
impl DriverFactory for NoFiles {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn open(&self, _: Options, _: OpenContext) -> Result<Arc<dyn BlockDriver>, OpenError> {
        Err(OpenError::Unsupported { driver: "file", what: "opening a file" })
    }
}

/// Hands out one driver that is there already, by this name.
pub struct Given(pub &'static str, pub Arc<dyn BlockDriver>);

#[async_trait]
impl DriverFactory for Given {
    fn name(&self) -> &'static str {
        self.0
    }

    async fn open(
        &self,
        mut options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        // References inside of the image come with their names.
        let _ = options.take("filename");
        options.finish()?;
        Ok(Arc::clone(&self.1))
    }
}
