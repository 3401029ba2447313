//! One-line faults for the tests that show that faults are found; never part of a build without `broken-variants`.
//!
//! `fault!(Name)` is the constant `false` in every other build. With the feature it says whether the fault of that
//! name is switched on, for this thread by a test or for the whole process by the environment.

#[cfg(not(feature = "broken-variants"))]
macro_rules! fault {
    ($name:ident) => {
        false
    };
}

#[cfg(feature = "broken-variants")]
macro_rules! fault {
    ($name:ident) => {
        $crate::fault::is_on($crate::fault::Fault::$name)
    };
}

#[cfg(feature = "broken-variants")]
mod switch {
    use std::cell::Cell;
    use std::sync::LazyLock;

    macro_rules! faults {
        (overlay { $($name:ident: $text:literal,)* } strangers { $($other:ident: $what:literal,)* }) => {
            /// What can be broken.
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum Fault { $($name,)* $($other,)* }

            impl Fault {
                /// Every fault of the overlay, with what it does.
                pub const ALL: &[(Fault, &str)] = &[$((Fault::$name, $text),)*];
                /// Every fault in what strangers' bytes come to: the fuzz target that has to find it, and what it does.
                pub const OF_STRANGERS: &[(Fault, &str)] = &[$((Fault::$other, $what),)*];
            }
        };
    }

    faults! {
    overlay {
        PresentAtSubmission: "a stripe is Present when its write is submitted",
        PagesFromLiveStates: "header pages are built from live states",
        NoFirstSync: "a round does not flush the data before the headers",
        NoSecondSync: "a round does not flush the headers",
        DurableForgotten: "a round forgets the headers of earlier rounds",
        FailedRoundPublishes: "a round that failed publishes its stripes",
        AnsweredBeforeRound: "a write is acknowledged before its header is durable",
        FlushJoinsRound: "a FLUSH is answered by a round that had begun before it",
        FuaIgnored: "FUA is ignored",
        FailedSyncRetried: "after a failed flush of the base another one is believed",
        CloseWithoutRound: "a clean close publishes and flushes nothing",
        StaleTail: "the rest of the image's last sector is not zeroed",
        TailNotZeroed: "a format leaves old bytes past the image end",
        MagicTooEarly: "a format does not flush before it writes the magic",
        WriteDuringFetch: "a write does not wait for the fetch of its stripe",
        FetchOverWrite: "a stripe that is ready can be claimed and fetched again",
        WriteWithoutFetch: "a write inside a stripe makes it Present without a fetch",
        DiscardLeavesOld: "a discard is passed to a base that does not promise zeros",
        ReadWhileFilling: "a stripe that is being filled is read from the base",
        LostWakeUp: "who waits for a stripe is not woken",
        FailedFetchKeepsClaim: "a failed fetch never gives its stripe back",
        UnlockedDescriptor: "I/O goes through another descriptor than the locked one",
        NeverMarked: "a volume is not marked open before a stripe becomes Present",
        MinorStays: "the minor version stays 1 while a volume is open",
        NewestOverwritten: "a change of state begins with the newest superblock",
        MapAfterAnswer: "a write is acknowledged before its byte is in the map",
        DurableTooEarly: "the map says that headers are durable before they are flushed",
        DurableNotNoted: "the map is never told that headers are durable",
        MapNotCompared: "a map is believed beside any state of its base",
        LostMapBelieved: "a map that was cut short goes on to acknowledge",
        SyncFailedForgotten: "a failed flush is not remembered",
        ChecksStay: "headers are written without a new check",
        MarkedTooEarly: "the map says that the marking is durable before it is flushed",
        MarkingStays: "the map says that the marking is durable while the superblocks change",
        MarkingBelieved: "a marking is taken for durable when a map is continued, whatever the map says",
        TakenForDurable: "what a dead process has written is taken for durable when a map is continued",
        FoundNotFlushed: "what a dead process left in the page cache is believed to be durable",
        AdoptionUnannounced: "sectors get their checks before the superblock says so",
        TailInDoubtClosed: "a recovered volume is closed with its last stripe in doubt",
        ErrorBecomesSuccess: "a failed write of the base fills its stripe all the same",
    }
    strangers {
        PlaintextLetIn: "handshake: a server that wants TLS carries out an option without it",
        LengthTrusted: "handshake: a string is as long as it says, whatever is there",
        PieceForgotten: "handshake: the first piece of an item that comes in two is forgotten",
        EndWraps: "transmission: the end of a request is computed without looking at an overflow",
        TailOverwritten: "transmission: a write inside a block does not keep what the block has behind it",
        HoleTooLong: "transmission: the last bytes of a read, up to 63, are not looked at before it is told as zeros",
        DescriptorTrusted: "vhost: a descriptor may point anywhere",
        HeadTrusted: "vhost: a head may be outside of the ring",
    }
    }

    thread_local! {
        static ON: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// Break one thing on this thread, or nothing.
    pub fn switch(fault: Option<Fault>) {
        ON.set(fault);
    }

    /// What UBI_FAULT names: broken in the whole process, for tests that kill it.
    static IN_PROCESS: LazyLock<Option<Fault>> = LazyLock::new(|| {
        let wanted = std::env::var("UBI_FAULT").ok()?;
        let named = Fault::ALL.iter().chain(Fault::OF_STRANGERS).find(|(fault, _)| format!("{fault:?}") == wanted);
        Some(named.unwrap_or_else(|| panic!("UBI_FAULT={wanted}: there is no such fault")).0)
    });

    /// Whether this fault is switched on for this thread or for the process.
    pub fn is_on(fault: Fault) -> bool {
        ON.get() == Some(fault) || *IN_PROCESS == Some(fault)
    }
}

#[cfg(feature = "broken-variants")]
pub use switch::{Fault, is_on, switch};
