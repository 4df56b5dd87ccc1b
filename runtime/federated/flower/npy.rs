//! Bytes as NumPy's `.npy` file of a flat array of `uint8`, which is what Flower carries.

const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes begin at a multiple of this.
const ALIGNMENT: usize = 64;
/// Digits that NumPy leaves room for in a length, so that a file may grow.
const DIGITS: usize = 21;

/// The file of bytes.
pub(super) fn file_of(bytes: &[u8]) -> Vec<u8> {
    let about =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}", bytes.len());
    // Magic, version, length of what follows, a line feed.
    let fixed = MAGIC.len() + 4;
    let room = DIGITS.saturating_sub(bytes.len().to_string().len());
    let padded = (fixed + about.len() + room + 1).next_multiple_of(ALIGNMENT);
    let head = padded - fixed;
    let mut file = Vec::with_capacity(padded + bytes.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&[1, 0, head as u8, (head >> 8) as u8]);
    file.extend_from_slice(about.as_bytes());
    file.resize(padded - 1, b' ');
    file.push(b'\n');
    file.extend_from_slice(bytes);
    file
}

/// The bytes in a file; nothing for one of anything else.
pub(super) fn bytes_of(file: &[u8]) -> Option<&[u8]> {
    let (version, rest) = file.strip_prefix(MAGIC)?.split_first_chunk::<2>()?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::try_from(u32::from_le_bytes(*length)).ok()?, rest)
        }
        _ => return None,
    };
    let (about, bytes) = rest.split_at_checked(length)?;
    let about = std::str::from_utf8(about).ok()?;
    let value = |key: &str| Some(about.split_once(key)?.1.trim_start());
    let is_bytes = ["'|u1'", "'u1'"]
        .iter()
        .any(|kind| value("'descr':").is_some_and(|value| value.starts_with(kind)));
    let shape = value("'shape':")?.strip_prefix('(')?.split_once(')')?.0;
    let count = shape.strip_suffix(',')?.trim().parse::<usize>().ok()?;
    (is_bytes && count == bytes.len()).then_some(bytes)
}
