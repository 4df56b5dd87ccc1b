//! What each id stands for: its bytes and its kind.

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    /// From the number in the file.
    pub(super) fn from_ggml(kind: i32) -> Option<Self> {
        Some(match kind {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Stands for no text of the user.
    pub(super) fn is_control(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// The bytes of all tokens, end to end.
#[derive(Default)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
    kinds: Vec<Kind>,
}

impl TokenTable {
    /// An empty table with room for `tokens`.
    pub(super) fn with_capacity(tokens: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(tokens * 8),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
        }
    }

    /// Appends the next id.
    pub(super) fn push(&mut self, bytes: impl IntoIterator<Item = u8>, kind: Kind) {
        self.bytes.extend(bytes);
        self.ends.push(self.bytes.len());
        self.kinds.push(kind);
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = usize::try_from(id).ok()?;
        let end = *self.ends.get(id)?;
        let start =
            id.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.bytes.get(start..end)
    }

    pub(super) fn is_control(&self, id: u32) -> bool {
        usize::try_from(id)
            .ok()
            .and_then(|id| self.kinds.get(id))
            .is_some_and(|kind| kind.is_control())
    }
}
