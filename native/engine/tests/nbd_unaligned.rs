//! Requests that are not in whole blocks, over a real socket and on both I/O engines.

mod nbd_support;

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::aio::Cache;

const LEGACY: Wish = Wish::new(Dialect::Structured);
const AGREED: Wish = Wish { block_sizes: true, ..LEGACY };

#[test]
fn who_never_asked_for_block_sizes_is_served_at_any_byte() {
    on_every_engine(|server| {
        let (volume, mut content) = server.ubi(4096);
        server.export("ubi", volume);
        server.export("file", server.aio("file", SIZE, 4096, Cache::None));
        for export in ["ubi", "file"] {
            let mut client = server.connect(export, &LEGACY);
            if export == "file" {
                content.fill(0);
            }
            for (turn, (offset, length)) in
                [(1, 1), (511, 2), (4095, 2), (4096, 512), (70_000, 10_000), (STRIPE - 1, 200_001), (SIZE - 3, 3)]
                    .into_iter()
                    .enumerate()
            {
                let data = vec![turn as u8 + 0x80; length as usize];
                assert_eq!(client.call(WRITE, if turn % 2 == 0 { FUA } else { 0 }, offset, length, &data).error, 0);
                content[offset as usize..][..length as usize].copy_from_slice(&data);
                assert_eq!(client.read(offset, length), data);
            }
            assert_eq!(client.call(WRITE_ZEROES, 0, 4000, 9000, &[]).error, 0);
            content[4000..13_000].fill(0);
            assert_eq!(client.call(WRITE_ZEROES, NO_HOLE | FUA, 70_001, 7, &[]).error, 0);
            content[70_001..70_008].fill(0);
            assert_eq!(client.call(TRIM, 0, 100_001, 100, &[]).error, 0, "no whole block: nothing happens");
            assert_eq!(client.call(CACHE, 0, 3, 100_000, &[]).error, 0);
            assert_eq!(client.read(0, SIZE), content, "{export}");
            for (offset, length) in [(0, 1), (1, 4096), (4095, 4097), (SIZE - 1, 1), (33, 2_000_001)] {
                let wanted = &content[offset as usize..][..length as usize];
                assert_eq!(client.read(offset, length), wanted, "{export}: {length} at {offset}");
            }
        }
    });
}

#[test]
fn who_asked_for_block_sizes_is_held_to_them() {
    on_every_engine(|server| {
        server.export("m", server.malloc(4096));
        let mut client = server.connect("m", &AGREED);
        for (command, payload) in [(READ, 0), (WRITE, 512), (TRIM, 0), (CACHE, 0), (WRITE_ZEROES, 0)] {
            assert_eq!(client.call(command, 0, 0, 512, &vec![1; payload]).error, EINVAL, "command {command}");
            assert_eq!(client.call(command, 0, 512, 512, &vec![1; payload]).error, EINVAL, "command {command}");
        }
        assert_eq!(client.read(0, 8192), vec![0; 8192], "nothing of that was written");
    });
}

/// Clients of 512 bytes on blocks of 4096, all in the same blocks at once, with whole blocks between them.
#[test]
fn unaligned_writes_to_one_block_at_once_lose_nothing() {
    on_every_engine(|server| {
        for export in ["direct", "ubi"] {
            let bdev = if export == "ubi" { server.ubi(4096).0 } else { server.aio("direct", SIZE, 4096, Cache::None) };
            // Two exports of one bdev: the blocks are the bdev's, whichever way a client comes.
            let second = format!("{export}-again");
            server.export(export, std::sync::Arc::clone(&bdev));
            server.export(&second, bdev);
            let name = |number: usize| if number.is_multiple_of(2) { export } else { &second };
            let mut clients: Vec<Client> = (0..8).map(|number| server.connect(name(number), &LEGACY)).collect();
            for round in 0..20u8 {
                for (number, client) in clients.iter_mut().enumerate() {
                    for block in 0..4u64 {
                        let offset = block * 4096 + number as u64 * 512;
                        client.send(WRITE, 0, block, offset, 512, &[round * 8 + number as u8 + 1; 512]);
                    }
                }
                for client in &mut clients {
                    for _ in 0..4 {
                        assert_eq!(client.reply(0, 0).error, 0);
                    }
                }
                let wanted: Vec<u8> = (0..4 * 8u8).flat_map(|part| [round * 8 + part % 8 + 1; 512]).collect();
                assert_eq!(clients[0].read(0, 16384), wanted, "{export}, round {round}");
            }
        }
    });
}

/// A whole block and a part of it at once: whichever comes last, no byte is of neither.
#[test]
fn a_whole_block_and_a_part_of_it_at_once_are_one_after_the_other() {
    on_every_engine(|server| {
        server.export("direct", server.aio("direct", SIZE, 4096, Cache::None));
        let (mut part, mut whole) = (server.connect("direct", &LEGACY), server.connect("direct", &LEGACY));
        part.write(5000, &[1; 10]); // from here on everybody takes the locks
        for round in 2..200u8 {
            part.send(WRITE, 0, 1, 100, 1000, &[round; 1000]);
            whole.send(WRITE, 0, 2, 0, 4096, &[round; 4096]);
            assert_eq!((part.reply(0, 0).error, whole.reply(0, 0).error), (0, 0));
            assert_eq!(part.read(0, 4096), vec![round; 4096], "round {round}");
        }
    });
}
