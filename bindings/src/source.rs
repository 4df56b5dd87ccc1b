//! Where a model is read from.

use std::fs::File;
use std::path::Path;

use epiphyte::Error;
use epiphyte::format::gguf::Gguf;

use crate::EpiphyteError;
use crate::error::{count, path as given};

/// Where a model is read from: GGUF, mapped and never copied.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum ModelSource {
    /// A file, or the first of its shards.
    Path {
        /// The file.
        path: String,
    },
    /// Part of a file, such as an entry that an archive holds as it is.
    Part {
        /// The file.
        path: String,
        /// Where it begins, in bytes.
        offset: i64,
        /// Bytes; none: all to the end.
        length: Option<i64>,
    },
    /// As `Part`, of a file that is open, such as an asset that the APK holds uncompressed. The
    /// descriptor stays the caller's, and has to be open until `open` returns.
    Descriptor {
        /// A file descriptor.
        fd: i32,
        /// Where it begins, in bytes.
        offset: i64,
        /// Bytes; none: all to the end.
        length: Option<i64>,
    },
}

impl ModelSource {
    /// Opens and checks the file; no weight is read.
    ///
    /// Errors: as [`Gguf::open`]; [`EpiphyteError::InvalidArgument`].
    pub(crate) fn gguf(self) -> Result<Gguf, EpiphyteError> {
        match self {
            Self::Path { path } => Ok(Gguf::open(given("path", path)?)?),
            Self::Part { path, offset, length } => {
                let path = given("path", path)?;
                let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
                let name = format!("{} from byte {offset} on", path.display());
                part(&file, &name, offset, length)
            }
            Self::Descriptor { fd, offset, length } => {
                let name = format!("descriptor {fd} from byte {offset} on");
                let file = duplicate(fd).map_err(|e| Error::io(Path::new(&name), e))?;
                part(&file, &name, offset, length)
            }
        }
    }
}

fn part(file: &File, name: &str, offset: i64, length: Option<i64>) -> Result<Gguf, EpiphyteError> {
    let length = length.map(|length| count("length", length)).transpose()?;
    Ok(Gguf::open_part(file, count("offset", offset)?, length, name)?)
}

/// The file of a descriptor that somebody else owns.
#[cfg(unix)]
fn duplicate(fd: i32) -> std::io::Result<File> {
    use std::os::fd::BorrowedFd;
    if fd < 0 {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    }
    // SAFETY: it is not -1, and is only duplicated, which the system refuses for one that is closed.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fd.try_clone_to_owned().map(File::from)
}

#[cfg(not(unix))]
fn duplicate(_: i32) -> std::io::Result<File> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
}
