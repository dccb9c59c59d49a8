//! Call frame information as compilers write it, laid out by hand.

use std::vec::Vec;

use super::*;

/// The bytes of an image with one function of 64 bytes at its start, with this program.
struct Image {
    bytes: Vec<u64>,
    loaded: Loaded,
}

const FUNCTION_SIZE: usize = 64;

fn image(augmentation: &[u8], initial: &[u8], program: &[u8]) -> Image {
    let mut entry = Vec::new();
    entry.extend(0_u32.to_le_bytes());
    entry.push(1);
    entry.extend(augmentation);
    entry.push(0);
    entry.extend([1, 0x78, 16]); // code alignment 1, data alignment -8, return address in 16
    entry.extend([1, 0x1b]); // one byte of augmentation: relative, signed, four bytes
    entry.extend(initial);
    let mut bytes = [0_u8; FUNCTION_SIZE].to_vec();
    let common_at = bytes.len();
    bytes.extend((entry.len() as u32).to_le_bytes());
    bytes.extend(&entry);
    let function_at = bytes.len();
    let mut function = Vec::new();
    function.extend((function_at as u32 + 4 - common_at as u32).to_le_bytes());
    function.extend((-(function_at as i32 + 8)).to_le_bytes());
    function.extend((FUNCTION_SIZE as u32).to_le_bytes());
    function.push(0);
    function.extend(program);
    bytes.extend((function.len() as u32).to_le_bytes());
    bytes.extend(&function);
    bytes.extend([0; 4]);
    let header = bytes.len();
    bytes.extend([1, 0x1b, 3, 0x3b]);
    bytes.extend((common_at as i32 - header as i32 - 4).to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((-(header as i32)).to_le_bytes());
    bytes.extend((function_at as i32 - header as i32).to_le_bytes());
    // Words, so that the image begins at an even address.
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let words = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("8")));
    let words: Vec<u64> = words.collect();
    let start = words.as_ptr() as usize;
    let end = start + bytes.len();
    let loaded = Loaded {
        number: 1,
        start,
        end,
        unwind_table: start + header,
    };
    Image {
        bytes: words,
        loaded,
    }
}

const CFA_IS_STACK_8_RETURN_AT_8: [u8; 5] = [0x0c, 7, 8, 0x90, 1];

fn step_at(image: &Image, offset: usize) -> Option<Step> {
    step(&image.loaded, image.loaded.start + offset)
}

fn call(cfa: Cfa, frame_pointer: Option<i32>) -> Option<Step> {
    Some(Step::Call { cfa, frame_pointer })
}

#[test]
fn a_function_with_a_frame_pointer_has_three_rows() {
    let program = [
        0x41, 0x0e, 16, 0x86, 2, // after push rbp: CFA at 16, rbp at -16
        0x43, 0x0d, 6, // after mov rbp, rsp: CFA from rbp
        0x02, 40, 0x0c, 7, 8, // after leave
    ];
    let image = image(b"zR", &CFA_IS_STACK_8_RETURN_AT_8, &program);
    assert_eq!(step_at(&image, 0), call(Cfa::Stack(8), None));
    assert_eq!(step_at(&image, 1), call(Cfa::Stack(16), Some(-16)));
    assert_eq!(step_at(&image, 3), call(Cfa::Stack(16), Some(-16)));
    assert_eq!(step_at(&image, 4), call(Cfa::Frame(16), Some(-16)));
    assert_eq!(step_at(&image, 43), call(Cfa::Frame(16), Some(-16)));
    assert_eq!(step_at(&image, 44), call(Cfa::Stack(8), Some(-16)));
    assert_eq!(step_at(&image, FUNCTION_SIZE), None);
    assert!(!image.bytes.is_empty());
}

#[test]
fn remembered_rows_come_back() {
    let program = [0x44, 0x0e, 48, 0x0a, 0x44, 0x0e, 8, 0xc6, 0x44, 0x0b];
    let image = image(b"zR", &CFA_IS_STACK_8_RETURN_AT_8, &program);
    assert_eq!(step_at(&image, 4), call(Cfa::Stack(48), None));
    assert_eq!(step_at(&image, 8), call(Cfa::Stack(8), None));
    assert_eq!(step_at(&image, 12), call(Cfa::Stack(48), None));
}

#[test]
fn a_function_that_aligns_its_stack_keeps_its_frame_address_in_memory() {
    // DW_CFA_def_cfa_expression: rbp - 8, dereferenced; DW_CFA_expression: rbp at rbp + 0.
    let program = [0x41, 0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0];
    let image = image(b"zR", &CFA_IS_STACK_8_RETURN_AT_8, &program);
    assert_eq!(step_at(&image, 1), call(Cfa::Saved(-8), Some(0)));
}

#[test]
fn the_expression_of_a_plt_depends_on_the_address() {
    // rsp + 8 + ((rip & 15) >= 11) * 8
    let program = [
        0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22,
    ];
    let image = image(b"zR", &CFA_IS_STACK_8_RETURN_AT_8, &program);
    let base = (16 - image.loaded.start % 16) % 16;
    assert_eq!(step_at(&image, base + 2), call(Cfa::Stack(8), None));
    assert_eq!(step_at(&image, base + 11), call(Cfa::Stack(16), None));
}

#[test]
fn the_first_function_of_a_thread_has_no_caller() {
    let image = image(b"zR", &CFA_IS_STACK_8_RETURN_AT_8, &[0x07, 16]);
    assert_eq!(step_at(&image, 8), Some(Step::End));
}

#[test]
fn what_a_signal_handler_returns_to_is_told_from_other_code() {
    let image = image(b"zRS", &CFA_IS_STACK_8_RETURN_AT_8, &[]);
    assert_eq!(step_at(&image, 8), Some(Step::Signal));
}

#[test]
fn what_compilers_do_not_write_is_refused() {
    for program in [
        &[0x0c, 3, 8][..],                  // CFA from rbx
        &[0x0b],                            // nothing to take back
        &[0x0a; 20],                        // too much to keep
        &[0x16, 16, 2, 0x77, 0],            // the return address is a value
        &[0x09, 6, 3],                      // rbp is in rbx
        &[0x3d],                            // unknown
        &[0x0f, 200, 0x77],                 // an expression that ends outside
        &[0x0c, 7, 0xff, 0xff, 0xff, 0xff], // a number without an end
        &[0x0f, 4, 0x76, 0x78, 0x06, 0x06], // twice dereferenced
        &[0x0f, 1, 0x22],
    ] {
        let image = image(b"zR", &CFA_IS_STACK_8_RETURN_AT_8, program);
        assert_eq!(step_at(&image, 8), None, "{program:x?}");
    }
    assert_eq!(step_at(&image(b"zQ", &[], &[]), 8), None);
}

#[test]
fn an_image_cut_anywhere_is_no_danger() {
    let image = image(
        b"zR",
        &CFA_IS_STACK_8_RETURN_AT_8,
        &[0x41, 0x0e, 16, 0x86, 2],
    );
    for end in image.loaded.start..image.loaded.end {
        let cut = Loaded {
            end,
            ..image.loaded
        };
        step(&cut, image.loaded.start + 8);
    }
}
