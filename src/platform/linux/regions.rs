//! `/proc/PID/maps` and `/proc/PID/smaps`: proc(5) documents both formats.

use crate::addr::{Addr, AddrRange};
use crate::snapshot::Region;

/// What `smaps` says of a region beyond `maps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RegionUse {
    pub(super) range: AddrRange,
    /// Bytes in memory or in swap.
    pub(super) used: u64,
    /// It must not be read: device memory (`io`, `pf`), or a page that another thread has to
    /// supply through userfaultfd (`um`, `uw`, `ui`).
    pub(super) forbidden: bool,
    /// The program supplies its pages itself through userfaultfd (`um`, `uw`, `ui`).
    pub(super) handled: bool,
    /// A child of the process does not get this memory as it is: `MADV_DONTFORK` (`dc`),
    /// `MADV_WIPEONFORK` (`wf`), huge pages that were set aside (`ht`).
    pub(super) apart: bool,
    /// Of the used bytes, those in huge pages.
    pub(super) huge: u64,
}

/// Parses all of `/proc/PID/maps`. Lines that are not in its format are left out.
pub(super) fn parse_maps(text: &[u8]) -> Vec<Region> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// Parses all of `/proc/PID/smaps`.
pub(super) fn parse_smaps(text: &[u8]) -> Vec<RegionUse> {
    let mut uses: Vec<RegionUse> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(region) = parse_line(line) {
            uses.push(RegionUse {
                range: region.range,
                ..RegionUse::default()
            });
        } else if let Some(last) = uses.last_mut() {
            add_field(last, line);
        }
    }
    uses
}

fn add_field(region: &mut RegionUse, line: &[u8]) {
    let Ok(line) = std::str::from_utf8(line) else {
        return;
    };
    let Some((name, value)) = line.split_once(':') else {
        return;
    };
    match name {
        "Rss" | "Swap" | "Private_Hugetlb" | "Shared_Hugetlb" => {
            region.used = region.used.saturating_add(bytes(value));
        }
        "AnonHugePages" => region.huge = bytes(value),
        "VmFlags" => {
            let has = |wanted: &[&str]| {
                let mut flags = value.split_ascii_whitespace();
                flags.any(|flag| wanted.contains(&flag))
            };
            region.handled = has(&["um", "uw", "ui"]);
            region.forbidden = region.handled || has(&["io", "pf"]);
            region.apart = has(&["dc", "wf", "ht"]);
        }
        _ => {}
    }
}

/// The number in a value such as `12 kB`.
fn bytes(value: &str) -> u64 {
    let kibibytes = value.trim().trim_end_matches(" kB").trim();
    kibibytes.parse::<u64>().unwrap_or(0).saturating_mul(1024)
}

/// Parses `55d0c8a0-55d0d000 rw-p 00001000 fe:01 1234   /path with spaces`.
fn parse_line(line: &[u8]) -> Option<Region> {
    let line = String::from_utf8_lossy(line);
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let range = AddrRange::new(Addr(hex(start)?), Addr(hex(end)?));
    let mut fields = rest.splitn(5, ' ');
    let permissions = fields.next()?.as_bytes();
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (hex(major)?, hex(minor)?);
    let inode = fields.next()?.parse().ok()?;
    let [read, write, execute, share] = *permissions.first_chunk::<4>()?;
    (range.start < range.end).then(|| Region {
        range,
        readable: read == b'r',
        writable: write == b'w',
        executable: execute == b'x',
        shared: share == b's',
        offset,
        file: (
            u32::try_from(device.0).unwrap_or(u32::MAX),
            u32::try_from(device.1).unwrap_or(u32::MAX),
            inode,
        ),
        name: fields.next().unwrap_or_default().trim_start().to_owned(),
    })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_a_region() {
        let text = b"7f12a000-7f12c000 rw-p 0001d000 fe:01 1234                      /opt/a b/x.so (deleted)\n";
        let regions = parse_maps(text);
        assert_eq!(
            regions,
            [Region {
                range: AddrRange::new(Addr(0x7f12_a000), Addr(0x7f12_c000)),
                readable: true,
                writable: true,
                executable: false,
                shared: false,
                offset: 0x1d000,
                file: (0xfe, 1, 1234),
                name: "/opt/a b/x.so (deleted)".to_owned(),
            }]
        );
    }

    #[test]
    fn anonymous_and_shared_regions_are_told_apart() {
        let text = b"1000-2000 ---p 00000000 00:00 0 \n2000-3000 rw-s 00000000 00:01 9 /dev/zero (deleted)\n3000-4000 rw-p 00000000 00:00 0                          [heap]\n";
        let regions = parse_maps(text);
        assert!(!regions[0].readable && regions[0].is_anonymous());
        assert!(regions[1].shared && !regions[1].is_anonymous());
        assert!(regions[2].is_private_anonymous_data());
        assert_eq!(regions[2].name, "[heap]");
    }

    #[test]
    fn malformed_lines_are_left_out() {
        for line in [
            "",
            "x",
            "1000 rw-p 0 00:00 0",
            "2000-1000 rw-p 0 00:00 0",
            "1000-2000 rw 0 00:00 0",
            "1000-2000 rw-p 0 0000 0",
            "1000-2000 rw-p 0 00:00",
            "zz-2000 rw-p 0 00:00 0",
            "10000000000000000-2 rw-p 0 00:00 0",
        ] {
            assert_eq!(parse_maps(line.as_bytes()), [], "{line}");
        }
    }

    #[test]
    fn smaps_tells_use_and_forbidden_regions() {
        let text = b"1000-9000 rw-p 00000000 00:00 0 \nSize: 32 kB\nRss:                  12 kB\nSwap:                  4 kB\nVmFlags: rd wr mr mw me ac \n9000-a000 rw-s 00000000 00:06 7 /dev/dri/card0\nRss: 0 kB\nVmFlags: rd wr sh io pf dd \n";
        let uses = parse_smaps(text);
        assert_eq!(uses.len(), 2);
        assert_eq!((uses[0].used, uses[0].forbidden), (16 * 1024, false));
        assert_eq!((uses[1].used, uses[1].forbidden), (0, true));
        let text = b"1000-9000 rw-p 00000000 00:00 0 \nAnonHugePages:      2048 kB\nVmFlags: rd wr wf ac \n9000-a000 rw-p 00000000 00:00 0\nVmFlags: rd um\n";
        let uses = parse_smaps(text);
        assert_eq!(
            (uses[0].huge, uses[0].apart, uses[0].handled),
            (2 << 20, true, false)
        );
        assert_eq!(
            (uses[1].apart, uses[1].handled, uses[1].forbidden),
            (false, true, true)
        );
    }
}
