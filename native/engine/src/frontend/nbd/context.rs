//! Metadata contexts: what BLOCK_STATUS can tell, and which of it a client has chosen.
//!
//! Source: NBD proto.md, "Metadata querying"; `qemu:allocation-depth` is described in qemu's docs/interop/nbd.rst,
//! `x-ubi:fetch` in docs/nbd.md.

use crate::bdev::extent::{ExtentState, Source};

/// `base:allocation`: no space is taken, a write may find none.
const ALLOCATION_HOLE: u32 = 1 << 0;
/// `base:allocation`: reads as zeros.
const ALLOCATION_ZERO: u32 = 1 << 1;
/// `x-ubi:fetch`: the volume's own storage holds it.
const FETCH_HERE: u32 = 1 << 0;
/// `x-ubi:fetch`: it is being brought there.
const FETCH_FILLING: u32 = 1 << 1;
/// `x-ubi:fetch`: the last attempt to fetch it failed. Bit 2 is not used: the format does not tell written stripes
/// from fetched ones.
const FETCH_FAILED: u32 = 1 << 3;

/// One kind of metadata; its number is its id on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Context {
    Allocation = 1,
    AllocationDepth = 2,
    Fetch = 3,
}

impl Context {
    pub const ALL: [Context; 3] = [Context::Allocation, Context::AllocationDepth, Context::Fetch];

    pub fn id(self) -> u32 {
        self as u32
    }

    pub fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::AllocationDepth => "qemu:allocation-depth",
            Context::Fetch => "x-ubi:fetch",
        }
    }

    /// The name's part up to the colon, which as a query of LIST_META_CONTEXT asks for all of that namespace.
    fn wildcard(self) -> &'static str {
        let name = self.name();
        &name[..=name.find(':').unwrap_or(name.len() - 1)]
    }

    /// What the context says of an extent.
    #[inline]
    pub fn value(self, state: &ExtentState) -> u32 {
        let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        match self {
            Context::Allocation => bit(state.is_hole, ALLOCATION_HOLE) | bit(state.is_zero, ALLOCATION_ZERO),
            Context::AllocationDepth => match state.source {
                Source::Nowhere => 0,
                Source::Local => 1,
                Source::Image => 2,
            },
            Context::Fetch => {
                bit(state.fetch.is_here, FETCH_HERE)
                    | bit(state.fetch.is_filling, FETCH_FILLING)
                    | bit(state.fetch.has_failed, FETCH_FAILED)
            }
        }
    }
}

/// A set of contexts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Contexts {
    pub fn all() -> Self {
        Context::ALL.into_iter().fold(Self::default(), Self::with)
    }

    /// Those that some query asks for; with `wildcards` a namespace asks for all that is in it. Whatever is not known
    /// is ignored, as NBD demands.
    pub fn matching<'a>(queries: impl IntoIterator<Item = &'a [u8]>, wildcards: bool) -> Self {
        queries.into_iter().fold(Self::default(), |found, query| {
            let asks_for = |context: &Context| {
                query == context.name().as_bytes() || wildcards && query == context.wildcard().as_bytes()
            };
            Context::ALL.into_iter().filter(asks_for).fold(found, Self::with)
        })
    }

    pub fn with(self, context: Context) -> Self {
        Self(self.0 | 1 << context.id())
    }

    pub fn contains(self, context: Context) -> bool {
        self.0 & 1 << context.id() != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members in the order of their ids.
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |&context| self.contains(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::extent::FetchState;

    fn names(queries: &[&[u8]], wildcards: bool) -> Vec<&'static str> {
        Contexts::matching(queries.iter().copied(), wildcards).iter().map(Context::name).collect()
    }

    #[test]
    fn queries_find_contexts_by_name_and_namespaces_where_that_is_allowed() {
        let all: [&[u8]; 3] = [b"x-ubi:", b"qemu:", b"base:"];
        assert_eq!(names(&all, true), ["base:allocation", "qemu:allocation-depth", "x-ubi:fetch"]);
        assert_eq!(names(&all, false), [""; 0]);
        assert_eq!(names(&[b"x-ubi:fetch", b"x-ubi:fetch"], false), ["x-ubi:fetch"]);
        let unknown: [&[u8]; 9] =
            [b"", b":", b"base", b"base:alloc", b"base:allocation ", b"BASE:", b"x-", b"qemu:dirty-bitmap:", b"\xff:"];
        assert_eq!(names(&unknown, true), [""; 0]);
    }

    #[test]
    fn values_are_those_that_clients_know() {
        let values = |state: &ExtentState| Context::ALL.map(|context| context.value(state));
        assert_eq!(values(&ExtentState::DATA), [0, 1, 1]);
        assert_eq!(values(&ExtentState::HOLE), [3, 0, 1]);
        let fetch = FetchState { is_here: false, is_filling: true, has_failed: true };
        let state = ExtentState { is_zero: false, is_hole: false, source: Source::Image, fetch };
        assert_eq!(values(&state), [0, 2, 0b1010]);
    }
}
