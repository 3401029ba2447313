//! What the cuts went through: how many distinct states were looked at while each thing was going on.

/// Something that a cut can go through; the texts are what is printed.
macro_rules! subjects {
    ($($name:ident: $text:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Subject { $($name,)* }

        impl Subject {
            pub const ALL: &[(Subject, &str)] = &[$((Subject::$name, $text),)*];
        }
    };
}

subjects! {
    ProcessDeath: "process death",
    PowerLoss: "power loss",
    Torn: "an operation torn apart",
    Format: "inside a format",
    Reopen: "inside an open of a volume",
    CleanClose: "inside a clean close",
    Read: "during a read",
    Fetch: "a fetch reading the image",
    Copy: "a fetch writing the base",
    WholeWrite: "a write of a whole stripe",
    PartialWrite: "a write inside a stripe",
    TailWrite: "a write past the image end",
    Zero: "write zeroes",
    Discard: "discard",
    Flush: "FLUSH",
    Fua: "FUA",
    Prefetch: "prefetch",
    RoundFirstSync: "a round's first sync",
    RoundHeaders: "a round's header pages in flight",
    RoundSecondSync: "a round's second sync",
    TimedRound: "after a round that nobody asked for",
    FailedWrite: "after a failed write of the base",
    FailedSync: "after a failed sync",
    FailedImage: "after a failed read of the image",
    ChangedImage: "after a change of the image",
    InlineWrite: "after a write taken inline",
    SecondLife: "in the life after a process death",
    AfterPower: "in the life after a power loss",
    AfterClose: "after a clean close and an open",
    NoSync: "with no_sync",
    NoCopyOnRead: "without copy on read",
    LargeBlocks: "blocks of 4096 bytes",
    Hole: "an image with a hole",
    Garbage: "a base that does not promise zeros",
    PastStripes: "stripes wholly past the image",
    Mark: "inside marking open",
    Adopt: "inside an adoption",
    Takeover: "inside a takeover on the same boot",
    AfterTakeover: "after a takeover on the same boot",
    NoMap: "without a place for maps",
    WithMap: "with a map",
    MapFailed: "after a map could not be made",
    SyncFailure: "while a failed sync is written down",
    Repair: "inside a repair",
    AfterRepair: "after a repair",
    WriteThrough: "with the write cache off",
    Repaired: "survivor repaired after a failed sync",
    RecoveredByMap: "survivor recovered by its map",
    RecoveredByHeaders: "survivor recovered by its headers",
    ReadByBdevUbi: "survivor read by bdev_ubi 0.1 (model)",
    BackFromBdevUbi: "survivor opened again after bdev_ubi 0.1 (model)",
    LostMap: "after a volatile map was cut short",
    Discarded: "survivor opened without its lost map",
    OldBase: "an older state of the base, put back",
    BdevUbiLife: "after a life with bdev_ubi 0.1 (model)",
}

/// A set of subjects.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subjects(u64);

impl Subjects {
    pub fn add(&mut self, subject: Subject) {
        self.0 |= 1 << subject as u64;
    }

    pub fn add_if(&mut self, subject: Subject, is_so: bool) {
        if is_so {
            self.add(subject);
        }
    }

    pub fn with(mut self, subject: Subject) -> Self {
        self.add(subject);
        self
    }
}

/// Counts of distinct states.
pub struct Coverage {
    counts: [u64; Subject::ALL.len()],
}

impl Default for Coverage {
    fn default() -> Self {
        Self { counts: [0; Subject::ALL.len()] }
    }
}

impl Coverage {
    pub fn count(&mut self, subjects: Subjects) {
        let mut rest = subjects.0;
        while rest != 0 {
            self.counts[rest.trailing_zeros() as usize] += 1;
            rest &= rest - 1;
        }
    }

    /// The subjects that no state went through.
    pub fn missing(&self) -> impl Iterator<Item = (Subject, &'static str)> + '_ {
        Subject::ALL.iter().filter(|(subject, _)| self.counts[*subject as usize] == 0).copied()
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Subject::ALL
            .iter()
            .try_for_each(|(subject, text)| writeln!(f, "{:>10}  {text}", self.counts[*subject as usize]))
    }
}
