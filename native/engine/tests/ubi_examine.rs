//! The format byte for byte, and what an open decides for each state of a base, damaged ones included.
//!
//! The vectors are computed by an implementation of its own (tests/format/reference.py), written from
//! docs/on-disk-format.md.

use ubi_engine::bdev::ubi::examine::{Decision, Found, Recovery, Request, find, judge};
use ubi_engine::bdev::ubi::inspect::{Metadata, Verdict, report, stripes_of};
use ubi_engine::bdev::ubi::layout;
use ubi_engine::bdev::ubi::refusal::{Name, Refusal};
use ubi_engine::bdev::ubi::sectors;
use ubi_engine::bdev::ubi::superblock::{Digests, Features, Slot, StoredImage, Superblock, VolumeState};
use ubi_engine::bdev::ubi::uuid::Uuid;

const STRIPES: u32 = 300;
const PRESENT: [u32; 8] = [0, 1, 7, 8, 248, 249, 256, 299];
const BOOT: &str = "b2f1c9e4-7d3a-4f60-9a51-0c8e6f2d4b17";

fn uuid() -> Uuid {
    "00112233-4455-6677-8899-aabbccddeeff".parse().expect("a UUID")
}

fn boot() -> Uuid {
    BOOT.parse().expect("a UUID")
}

/// A base as an open reads it.
#[derive(Clone)]
struct Base {
    area: Vec<u8>,
    slots: [Vec<u8>; 2],
}

impl Base {
    /// A vector: its superblock in the first slot, and the same, one older, in the second.
    fn vector(name: &str) -> Self {
        let path = format!("{}/tests/vectors/{name}.hex", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("a vector");
        let mut base = Base { area: vec![0; 4096], slots: [vec![0; 4096], vec![0; 4096]] };
        for line in text.lines() {
            let (at, hex) = line.split_once(' ').expect("offset and bytes");
            let at = usize::from_str_radix(at, 16).expect("an offset");
            let (target, at) = if at < 4096 { (&mut base.area, at) } else { (&mut base.slots[0], at - 0x60_0000) };
            for (index, byte) in target[at..].iter_mut().enumerate().take(hex.len() / 2) {
                *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hexadecimal");
            }
        }
        let mut other = base.superblock();
        other.sequence -= 1;
        base.slots[1] = other.encode().to_vec();
        base
    }

    /// What bdev_ubi leaves: no superblock, no checks.
    fn of_bdev_ubi() -> Self {
        let base = Self::vector("adopting");
        Base { slots: [vec![0; 4096], vec![0; 4096]], ..base }
    }

    fn superblock(&self) -> Superblock {
        match Superblock::decode(&self.slots[0]) {
            Slot::Valid(superblock) => *superblock,
            other => panic!("{other:?}"),
        }
    }

    /// Change both superblocks.
    fn with(mut self, change: impl Fn(&mut Superblock)) -> Self {
        let mut superblock = self.superblock();
        change(&mut superblock);
        self.slots[0] = superblock.encode().to_vec();
        superblock.sequence -= 1;
        self.slots[1] = superblock.encode().to_vec();
        self
    }

    fn metadata(&self) -> Metadata {
        Metadata { area: self.area.clone(), slots: [0, 1].map(|slot| Superblock::decode(&self.slots[slot])) }
    }

    fn decide(&self, request: &Request) -> Result<Decision, Refusal> {
        let metadata = self.metadata();
        match find(request, &self.area, &metadata.slots)? {
            Found::New => Ok(Decision::Format),
            Found::Volume(volume) => judge(request, &volume, &self.area, STRIPES),
        }
    }

    fn refused(&self, request: &Request) -> Refusal {
        self.decide(request).expect_err("refused")
    }
}

fn request() -> Request {
    let size_bytes = u64::from(STRIPES - 1) * 65536 + 700;
    let image = StoredImage { kind: "file".into(), size_bytes, tag: "mtime:1763739000123456789".into() };
    Request { base: "b".into(), image: Some(image), boot_id: Some(boot()), ..Request::default() }
}

fn set_headers(area: &mut [u8], stripes: &[u32]) {
    stripes.iter().for_each(|&stripe| area[layout::header_at(stripe)] = 1);
}

#[test]
fn vectors_are_written_byte_for_byte() {
    for name in ["clean", "open", "formatting", "adopting", "sync_failed"] {
        let base = Base::vector(name);
        let superblock = base.superblock();
        assert_eq!(superblock.state.as_str(), name);
        assert_eq!(superblock.encode()[..], base.slots[0], "{name}: decoded and encoded again");
        let minor = if ["open", "sync_failed"].contains(&name) { 2 } else { 1 };
        let mut area = vec![0; 4096];
        layout::put_identity(&mut area, 64);
        layout::put_minor(&mut area, minor);
        if name != "formatting" {
            set_headers(&mut area, &PRESENT);
        }
        if name != "adopting" {
            for index in 0..sectors::used(STRIPES) {
                sectors::seal(uuid(), index, &mut area[index * 512..(index + 1) * 512]);
            }
        }
        assert!(area == base.area, "{name}: header pages");
        assert_eq!(
            (superblock.uuid, superblock.stripes(), superblock.image_end),
            (uuid(), STRIPES, 299 * 65536 + 1024)
        );
        assert_eq!(superblock.image, request().image.expect("an image"));
    }
    let open = Base::vector("open").superblock();
    assert_eq!((open.epoch, open.sequence, open.boot_id), (4, 10, boot()));
    assert_eq!(open.map_path, b"/var/lib/ubi_rpc/00112233-4455-6677-8899-aabbccddeeff.4.map");
}

#[test]
fn each_state_of_a_whole_volume_is_decided_as_the_table_says() {
    let decide = |name: &str, request: &Request| Base::vector(name).decide(request);
    let other_boot = Request { boot_id: Some(uuid()), ..request() };
    let discarding = Request { discard_unpublished: true, ..request() };
    assert_eq!(decide("clean", &request()), Ok(Decision::Open { finish: false }));
    assert_eq!(decide("formatting", &request()), Ok(Decision::Open { finish: true }));
    assert_eq!(decide("adopting", &request()), Ok(Decision::Adopt { changed: false }));
    assert_eq!(decide("open", &request()), Ok(Decision::Recover(Recovery::WithMap)));
    assert_eq!(decide("open", &other_boot), Ok(Decision::Recover(Recovery::Headers)));
    assert_eq!(decide("open", &discarding), Ok(Decision::Recover(Recovery::Discarding)));
    let unknown_boot = Request { boot_id: None, ..request() };
    assert_eq!(decide("open", &unknown_boot), Ok(Decision::Recover(Recovery::WithMap)), "never guessed");
    let no_map = Base::vector("open").with(|superblock| superblock.map_path.clear());
    assert_eq!(no_map.decide(&request()), Ok(Decision::Recover(Recovery::Headers)));
    assert_eq!(decide("sync_failed", &other_boot).expect_err("refused").name, Name::SyncFailed);
    let new = Base { area: vec![0; 4096], slots: [vec![0; 4096], vec![0xee; 4096]] };
    assert_eq!(new.decide(&request()), Ok(Decision::Format));
}

#[test]
fn a_cut_while_marking_or_closing_or_formatting_is_finished() {
    let open = Base::vector("open");
    let clean = Base::vector("clean");
    // Marked in the superblocks, and the minor version has not landed; then only in one of them.
    let mut marking = Base { area: clean.area.clone(), ..open.clone() }.with(|superblock| {
        superblock.digests = clean.superblock().digests;
    });
    assert_eq!(marking.decide(&request()), Ok(Decision::Open { finish: true }));
    marking.slots[1] = clean.slots[0].clone();
    assert_eq!(marking.decide(&request()), Ok(Decision::Open { finish: true }));
    // Closed in one superblock, and the minor version has not landed: the digests are those of the next step.
    let mut closing = Base { area: open.area.clone(), ..clean.clone() };
    assert_eq!(closing.decide(&request()), Ok(Decision::Open { finish: true }));
    closing.slots[1] = open.slots[0].clone();
    closing.slots[0] = Superblock { sequence: 12, ..clean.superblock() }.encode().to_vec();
    assert_eq!(closing.decide(&request()), Ok(Decision::Open { finish: true }));
    // A format is done again until its magic is there.
    let mut format = Base::vector("formatting");
    format.area[..9].fill(0);
    assert_eq!(format.decide(&request()), Ok(Decision::Format));
    format.slots[1] = vec![0; 4096];
    assert_eq!(format.decide(&request()), Ok(Decision::Format));
    // A torn slot leaves the other.
    let mut torn = clean;
    torn.slots[0][2048..].fill(7);
    assert_eq!(torn.decide(&request()), Ok(Decision::Open { finish: true }));
    assert_eq!(report(&request(), &torn.metadata(), Some(STRIPES)).problems[0].name, Name::SuperblockSlot);
}

#[test]
fn volumes_of_bdev_ubi_are_adopted_when_the_stripe_size_is_given() {
    let base = Base::of_bdev_ubi();
    let with_size = Request { stripe_size_kb: Some(64), ..request() };
    assert_eq!(base.decide(&with_size), Ok(Decision::Adopt { changed: false }));
    assert_eq!(base.refused(&request()).name, Name::StripeSizeNeeded);
    assert_eq!(base.refused(&Request { stripe_size_kb: Some(128), ..request() }).name, Name::StripeSizeDiffers);
    let refused = |at: usize, byte: u8| {
        let mut base = base.clone();
        base.area[at] = byte;
        base.refused(&with_size).name
    };
    assert_eq!(refused(layout::header_at(3), 2), Name::HeaderDamaged);
    assert_eq!(refused(layout::header_at(300), 1), Name::HeaderDamaged, "past the image");
    assert_eq!(refused(layout::header_at(3) + 1, 1), Name::SuperblockDamaged, "a check without a superblock");
    assert_eq!(refused(4000, 1), Name::HeaderDamaged);
    let mut checked = Base::vector("clean");
    checked.slots = [vec![0; 4096], vec![0; 4096]];
    assert_eq!(checked.refused(&with_size).name, Name::SuperblockDamaged);
    assert!(report(&request(), &base.metadata(), None).problems[0].name == Name::StripeSizeNeeded);
    assert_eq!(report(&with_size, &base.metadata(), Some(STRIPES)).verdict, Verdict::Adoptable);
}

#[test]
fn what_bdev_ubi_has_changed_is_adopted_only_when_asked_and_only_if_it_can_be_its_work() {
    let adopt = Request { adopt: true, ..request() };
    let mut base = Base::vector("clean");
    set_headers(&mut base.area, &[2, 250]);
    let refusal = base.refused(&request());
    assert_eq!((refusal.name, &refusal.sectors[..]), (Name::ChangedSinceClose, &[0, 1][..]));
    assert!(refusal.message.contains("changed by bdev_ubi or damaged since our clean close: 2 sectors"), "{refusal:?}");
    assert_eq!(base.decide(&adopt), Ok(Decision::Adopt { changed: true }));
    let mut fewer = Base::vector("clean");
    fewer.area[layout::header_at(7)] = 0;
    assert_eq!(fewer.refused(&adopt).name, Name::ChangedSinceClose, "a header never goes back");
    let mut checks = base.clone();
    checks.area[17] ^= 1;
    assert_eq!(checks.refused(&adopt).name, Name::ChangedSinceClose, "bdev_ubi keeps byte 1s");
    let mut odd = base.clone();
    odd.area[layout::header_at(3)] = 0x11;
    assert_eq!(odd.refused(&adopt).name, Name::ChangedSinceClose);
    let mut open = Base::vector("open");
    set_headers(&mut open.area, &[2]);
    assert_eq!(open.refused(&adopt).name, Name::SectorDamaged, "bdev_ubi does not open 0.2");
    // Going on with it: checks of before, right ones and none may stand side by side, byte 0s may not change.
    let adopting = base.clone().with(|superblock| {
        superblock.state = VolumeState::Adopting;
        superblock.adopts_changed = true;
        superblock.digests = sectors::digests(&base.area, STRIPES);
    });
    assert_eq!(adopting.decide(&request()), Ok(Decision::Adopt { changed: true }));
    let mut half = adopting.clone();
    sectors::seal(uuid(), 0, &mut half.area[..512]);
    assert_eq!(half.decide(&request()), Ok(Decision::Adopt { changed: true }));
    half.area[layout::header_at(5)] = 1;
    assert_eq!(half.refused(&request()).name, Name::ChangedSinceClose);
    let mut plain = Base::vector("adopting");
    plain.area[513] = 9;
    assert_eq!(plain.refused(&request()).name, Name::SectorDamaged, "absent or right, nothing else");
}

#[test]
fn what_does_not_fit_the_request_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = request();
        change(&mut request);
        let refusal = Base::vector("clean").refused(&request);
        assert_eq!(refusal.clone().into_error().errno(), libc_einval(), "{refusal:?}");
        refusal.name
    };
    assert_eq!(refused(&|request| request.uuid = Some(boot())), Name::UuidDiffers);
    assert_eq!(refused(&|request| request.stripe_size_kb = Some(128)), Name::StripeSizeDiffers);
    assert_eq!(refused(&|request| request.wipe = true), Name::WipeOfVolume);
    let image = |request: &mut Request, change: &dyn Fn(&mut StoredImage)| change(request.image.as_mut().expect("one"));
    assert_eq!(refused(&|request| image(request, &|image| image.size_bytes += 1)), Name::ImageDiffers);
    assert_eq!(refused(&|request| image(request, &|image| image.kind = "http".into())), Name::ImageDiffers);
    assert_eq!(refused(&|request| image(request, &|image| image.tag = "mtime:1".into())), Name::ImageDiffers);
    let mut complete = Base::vector("clean");
    set_headers(&mut complete.area, &(0..STRIPES).collect::<Vec<_>>());
    (0..2).for_each(|index| sectors::seal(uuid(), index, &mut complete.area[index * 512..(index + 1) * 512]));
    let digests = sectors::digests(&complete.area, STRIPES);
    let complete = complete.with(|superblock| superblock.digests = digests);
    let mut changed = request();
    image(&mut changed, &|image| image.tag = "mtime:1".into());
    assert_eq!(complete.decide(&changed), Ok(Decision::Open { finish: false }), "its image is not needed");
}

fn libc_einval() -> i32 {
    22
}

#[test]
fn what_is_not_ours_or_newer_is_refused_by_name() {
    let with = |at: usize, bytes: &[u8]| {
        let mut base = Base::of_bdev_ubi();
        base.area[at..at + bytes.len()].copy_from_slice(bytes);
        base.refused(&Request { stripe_size_kb: Some(64), ..request() }).name
    };
    assert_eq!(with(13, &[1]), Name::TagLayout);
    assert_eq!(with(13, &[0x41]), Name::UnknownStripeSize);
    assert_eq!(with(9, &[2, 0, 0, 0]), Name::Ubiblk);
    assert_eq!(with(11, &[3]), Name::UnknownVersion);
    assert_eq!(with(0, b"QFI\xfb"), Name::ForeignContent);
    assert_eq!(with(11, &[2]), Name::SuperblockDamaged, "0.2 without a superblock");
    let mut zeroed = Base::vector("clean");
    zeroed.area[..9].fill(0);
    assert_eq!(zeroed.refused(&request()).name, Name::ZeroedMagic);
    assert_eq!(zeroed.decide(&Request { wipe: true, ..request() }), Ok(Decision::Format));
    let features = |change: &dyn Fn(&mut Features)| {
        Base::vector("clean").with(|superblock| change(&mut superblock.features)).decide(&request())
    };
    assert_eq!(features(&|features| features.incompatible = 4).expect_err("refused").name, Name::UnknownFeature);
    assert_eq!(
        features(&|features| features.read_only_compatible = 1).expect_err("refused").name,
        Name::UnknownFeature
    );
    assert_eq!(features(&|features| features.compatible = 1), Ok(Decision::Open { finish: false }));
    let mut newer = Base::vector("clean");
    newer.slots[1][8] = 2;
    let crc = crc32c::crc32c(&newer.slots[1][..4092]).to_le_bytes();
    newer.slots[1][4092..].copy_from_slice(&crc);
    assert_eq!(newer.refused(&request()).name, Name::SuperblockUnknown);
    let mut two = Base::vector("clean");
    two.slots[1] = Superblock { uuid: boot(), ..two.superblock() }.encode().to_vec();
    assert_eq!(two.refused(&request()).name, Name::SuperblocksDisagree);
    let mut both = Base::vector("clean");
    both.slots.iter_mut().for_each(|slot| slot[100] ^= 1);
    assert_eq!(both.refused(&request()).name, Name::SuperblockDamaged);
}

/// A volume with eight used sectors, closed or open, with the same superblock in both slots.
fn eight_sectors(state: VolumeState) -> Base {
    let stripes = 249 + 6 * 256 + 50;
    let minor = if state == VolumeState::Clean { 1 } else { 2 };
    let mut area = vec![0; 4096];
    layout::put_identity(&mut area, 64);
    set_headers(&mut area, &(0..stripes).filter(|stripe| stripe % 3 == 0).collect::<Vec<_>>());
    let first = sectors::closed(uuid(), &area[..512]);
    area[..512].copy_from_slice(&first);
    (1..8).for_each(|index| sectors::seal(uuid(), index, &mut area[index * 512..(index + 1) * 512]));
    let size_bytes = u64::from(stripes) * 65536;
    let superblock = Superblock {
        state,
        image: StoredImage { size_bytes, ..request().image.expect("one") },
        image_end: size_bytes,
        set_headers: sectors::count_set(&area, stripes),
        digests: sectors::digests(&area, stripes),
        ..Base::vector(if state == VolumeState::Clean { "clean" } else { "open" }).superblock()
    };
    layout::put_minor(&mut area, minor);
    sectors::seal(uuid(), 0, &mut area[..512]);
    let older = Superblock { sequence: superblock.sequence - 1, ..superblock.clone() };
    Base { area, slots: [superblock.encode().to_vec(), older.encode().to_vec()] }
}

/// What an open decides, as `ubi::open` does: with the stripes that the superblock says.
fn decide_any(base: &Base) -> Result<Decision, Refusal> {
    let request = Request { image: None, ..request() };
    let metadata = base.metadata();
    let stripes = stripes_of(&request, &metadata).unwrap_or(8);
    let told = report(&request, &metadata, Some(stripes));
    let decided = match find(&request, &base.area, &metadata.slots)? {
        Found::New => Ok(Decision::Format),
        Found::Volume(volume) => judge(&request, &volume, &base.area, stripes),
    };
    assert_eq!(decided.is_err(), told.verdict == Verdict::Refused);
    decided
}

#[test]
fn every_bit_of_eight_used_sectors_is_told_of() {
    for state in [VolumeState::Clean, VolumeState::Open] {
        let base = eight_sectors(state);
        assert!(decide_any(&base).is_ok());
        let step = if cfg!(debug_assertions) { 61 } else { 1 };
        for bit in (0..8 * 4096).step_by(step) {
            let mut damaged = base.clone();
            damaged.area[bit / 8] ^= 1 << (bit % 8);
            let refusal = decide_any(&damaged).expect_err("damage is never accepted");
            let names_sector = refusal.sectors.contains(&((bit / 4096) as u32));
            let is_magic = bit / 8 < 14;
            assert!(names_sector || is_magic, "{state:?} bit {bit}: {refusal:?}");
        }
    }
}

#[test]
fn swapped_and_older_sectors_are_told_of() {
    let clean = eight_sectors(VolumeState::Clean);
    for first in 1..8 {
        for second in first + 1..8 {
            for state in [VolumeState::Clean, VolumeState::Open] {
                let mut base = eight_sectors(state);
                let (left, right) = base.area.split_at_mut(second * 512);
                left[first * 512..(first + 1) * 512].swap_with_slice(&mut right[..512]);
                let refusal = decide_any(&base).expect_err("swapped");
                assert_eq!(refusal.sectors, [first as u32, second as u32]);
            }
        }
        // A whole sector of an earlier time, its check right: the digests of the clean close tell.
        let mut older = clean.clone();
        older.area[layout::header_at(sectors::headers_in(first).start + 2)] ^= 1;
        sectors::seal(uuid(), first, &mut older.area[first * 512..(first + 1) * 512]);
        assert_eq!(decide_any(&older).expect_err("older").name, Name::ChangedSinceClose);
    }
}

/// A magic that is gone and superblocks that are damaged were a volume: a cut of a format tears one slot at most.
#[test]
fn a_volume_that_lost_its_magic_and_both_superblocks_is_not_formatted() {
    let mut lost = eight_sectors(VolumeState::Open);
    lost.area[..9].fill(0);
    lost.slots.iter_mut().for_each(|slot| slot[100] ^= 1);
    assert_eq!(decide_any(&lost).expect_err("refused").name, Name::ZeroedMagic);
    let mut overwritten = eight_sectors(VolumeState::Open);
    overwritten.area[3] ^= 1;
    let refusal = decide_any(&overwritten).expect_err("refused");
    assert!(refusal.message.contains("if that volume is still wanted"), "{}", refusal.message);
    lost.slots[0].fill(0);
    assert_eq!(decide_any(&lost).expect("a format that was cut short looks like this"), Decision::Format);
}

/// 200,000 random changes, of sectors, slots or both: refused by name, or what was there is still told as it was.
#[test]
fn random_damage_is_never_accepted_as_something_else() {
    let mut random = 0x5eed_u64;
    let mut next = move |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    let bases = [eight_sectors(VolumeState::Clean), eight_sectors(VolumeState::Open)];
    let changes = if cfg!(debug_assertions) { 2_000 } else { 200_000 };
    for _ in 0..changes {
        let base = &bases[next(2)];
        let expected = decide_any(base).expect("whole");
        let mut damaged = base.clone();
        for _ in 0..=next(4) {
            let target = match next(4) {
                0 => &mut damaged.slots[0],
                1 => &mut damaged.slots[1],
                _ => &mut damaged.area,
            };
            let (at, len) = (next(4096), 1 + next(64));
            let end = (at + len).min(4096);
            match next(4) {
                0 => target[at..end].fill(next(256) as u8),
                1 => target[at] ^= 1 << next(8),
                2 => target[at..end].iter_mut().for_each(|byte| *byte = next(256) as u8),
                _ => target.copy_within(at..end, next(4096 - (end - at) + 1)),
            }
        }
        match decide_any(&damaged) {
            Err(refusal) => assert!(!refusal.message.is_empty()),
            Ok(Decision::Open { .. }) if matches!(expected, Decision::Open { .. }) => {
                assert!(damaged.area == base.area)
            }
            Ok(decision) => {
                assert_eq!(decision, expected);
                assert!(damaged.area == base.area, "accepted, and its headers are not the same");
            }
        }
    }
}

/// Bytes of any kind are answered and never a reason to panic.
#[test]
fn any_bytes_are_answered() {
    let mut random = 1_u64;
    let mut fill = |bytes: &mut [u8]| {
        for byte in bytes {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (random >> 56) as u8;
        }
    };
    for round in 0..2_000 {
        let mut base = eight_sectors(VolumeState::Open);
        let mut body = vec![0; 4096];
        fill(&mut body);
        base.slots.iter_mut().enumerate().for_each(|(slot, bytes)| {
            let keep = 12 + (round * 7 + slot * 90) % 300;
            bytes[keep..4092].copy_from_slice(&body[keep..4092]);
            let crc = crc32c::crc32c(&bytes[..4092]).to_le_bytes();
            bytes[4092..].copy_from_slice(&crc);
        });
        let _ = decide_any(&base);
        base.area.copy_from_slice(&body);
        let _ = decide_any(&base);
    }
    assert_eq!(Superblock::decode(b"ubi_rpc\0"), Slot::Absent);
    let digests = Digests { states: 1, checks: 2 };
    assert_ne!(digests, Digests::default());
}
