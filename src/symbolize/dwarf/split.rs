//! Split DWARF: units whose functions are in `.dwo` files, or in a `.dwp` file that has them all.

use gimli::{Dwarf, DwarfPackage, DwarfPackageSections, EndianSlice, LittleEndian, Section};

use super::budget::Budget;
use super::file::{DwarfFile, Root, Slice};
use super::sections;
use crate::platform::TargetFiles;
use crate::symbolize::elf::ElfFile;

/// Where the other parts of an image's debug information are looked for.
pub(in crate::symbolize) struct SplitFiles<'s> {
    pub(in crate::symbolize) files: &'s TargetFiles,
    /// The paths of the image and of its debug file.
    pub(in crate::symbolize) paths: Vec<String>,
}

impl SplitFiles<'_> {
    /// The sections of the `.dwp` file beside the image, if there is one.
    pub(super) fn package(&self) -> Option<DwarfPackageSections<Vec<u8>>> {
        let paths = self.paths.iter().flat_map(|path| {
            let plain = path.strip_suffix(".debug").unwrap_or(path);
            [format!("{path}.dwp"), format!("{plain}.dwp")]
        });
        paths
            .filter_map(|path| self.open(&path))
            .find_map(|elf| sections::package(&elf))
    }

    /// Calls `use_unit` with the unit that `skeleton` stands for, from the package or from a file
    /// of its own. Both are known by an id that the skeleton has, too.
    pub(super) fn with_unit<'d, T>(
        &self,
        main: &DwarfFile<'d>,
        skeleton: &Root<'d>,
        package: Option<&DwarfPackage<Slice<'d>>>,
        use_unit: impl for<'x> Fn(&DwarfFile<'x>, &Root<'x>, &Budget) -> Option<T>,
    ) -> Option<T> {
        let id = skeleton.unit.dwo_id?;
        let found = package.and_then(|package| package.find_cu(id, &main.dwarf).ok()?);
        if let Some(dwarf) = found {
            return use_skeletons_unit(dwarf, skeleton, &use_unit);
        }
        self.candidates(skeleton).into_iter().find_map(|path| {
            let sections = sections::split(&self.open(&path)?)?;
            let mut dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
            dwarf.make_dwo(&main.dwarf);
            use_skeletons_unit(dwarf, skeleton, &use_unit)
        })
    }

    /// Where the `.dwo` file may be: where it was written, or beside the image, if both moved.
    fn candidates(&self, skeleton: &Root<'_>) -> Vec<String> {
        let Some(name) = skeleton.dwo_name.and_then(|name| name.to_string().ok()) else {
            return Vec::new();
        };
        let directory = skeleton.unit.comp_dir;
        let directory = directory.and_then(|directory| directory.to_string().ok());
        let written = match directory {
            _ if name.starts_with('/') => Some(name.to_owned()),
            Some(directory) => Some(format!("{directory}/{name}")),
            None => None,
        };
        let file_name = name.rsplit('/').next().unwrap_or(name);
        let beside = self.paths.iter().filter_map(|path| {
            let (directory, _) = path.rsplit_once('/')?;
            Some(format!("{directory}/{file_name}"))
        });
        written.into_iter().chain(beside).collect()
    }

    fn open(&self, path: &str) -> Option<ElfFile<crate::platform::RegularFile>> {
        let file = self.files.file(path).or_else(|| self.files.own_file(path));
        ElfFile::parse(file?)
    }
}

/// Each `.dwo` file has a budget of its own.
fn use_skeletons_unit<'x, T>(
    dwarf: Dwarf<Slice<'x>>,
    skeleton: &Root<'_>,
    use_unit: &impl Fn(&DwarfFile<'x>, &Root<'x>, &Budget) -> Option<T>,
) -> Option<T> {
    let size = [&dwarf.debug_info.reader(), &dwarf.debug_str.reader()];
    let size = size.map(|section| section.len() as u64).iter().sum();
    let budget = Budget::new(super::steps_for(size));
    let id = skeleton.unit.dwo_id;
    let file = DwarfFile::of_skeleton(dwarf, &skeleton.unit, &budget);
    let mut roots = (0..file.len()).filter_map(|index| file.root(index, &budget));
    let root = roots.find(|root| !root.is_partial && root.unit.dwo_id == id)?;
    use_unit(&file, root, &budget)
}
