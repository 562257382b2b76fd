//! A guest without Linux: a kernel of some bytes that shows life on its serial port, for what a VMM does without a guest's
//! help. It boots where KVM cannot run real kernels.
//!
//! It says [`GREETING`] once, then writes a [`BEAT`] now and again. Where its initrd begins with [`RESETS`], [`FAULTS`] or
//! [`HALTS`] it does that after the greeting.

/// What it says first.
pub const GREETING: &str = "a stub begins\n";
/// What it writes from then on.
pub const BEAT: u8 = b'.';
/// The first byte of an initrd that makes it reset the machine.
pub const RESETS: u8 = b'r';
/// That of one that makes its processor fault until that gives up.
pub const FAULTS: u8 = b'f';
/// That of one that makes it halt for good, which is how Linux powers off that finds no way to.
pub const HALTS: u8 = b'h';

/// Where it is loaded: the first address that Linux's boot protocol for 64-bit entry allows.
const BASE: u64 = 0x10_0000;
const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// Turns between two beats. Many of a real processor, few of one that is emulated.
const PAUSE: u32 = 2000;

/// The kernel, a 64-bit ELF file that is entered with the address of Linux's boot parameters in `rsi`
/// (Documentation/arch/x86/boot.rst).
pub fn kernel() -> Vec<u8> {
    let code = code();
    let mut file = Vec::new();
    let start = FILE_HEADER + PROGRAM_HEADER;
    // An executable for x86-64, little-endian (elf(5)).
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for offset in [BASE, FILE_HEADER as u64, 0] {
        file.extend(offset.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for count in [FILE_HEADER as u16, PROGRAM_HEADER as u16, 1, 0, 0, 0] {
        file.extend(count.to_le_bytes());
    }
    // One segment, read and executed.
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for value in [start as u64, BASE, BASE, code.len() as u64, code.len() as u64, 0x1000] {
        file.extend(value.to_le_bytes());
    }
    file.extend(code);
    file
}

fn code() -> Vec<u8> {
    let mut code = Vec::new();
    code.extend([0x8b, 0x86, 0x18, 0x02, 0x00, 0x00]); // mov eax, [rsi + 0x218]   the initrd's address
    code.extend([0x8a, 0x18]); // mov bl, [rax]
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8           the serial port
    code.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip + ...]     the greeting, after the code
    let greeting_at = code.len();
    code.extend([0; 4]);
    code.push(0xb9); // mov ecx, its length
    code.extend((GREETING.len() as u32).to_le_bytes());
    code.extend([0xac, 0xee, 0xe2, 0xfc]); // lodsb; out dx, al; loop
    code.extend([0x80, 0xfb, RESETS, 0x75, 0x04]); // cmp bl, RESETS; jne over
    code.extend([0xb0, 0xfe, 0xe6, 0x64]); // mov al, 0xfe; out 0x64, al   the keyboard controller's reset
    code.extend([0x80, 0xfb, FAULTS, 0x75, 0x02]); // cmp bl, FAULTS; jne over
    code.extend([0x0f, 0x0b]); // ud2                     nothing handles it
    code.extend([0x80, 0xfb, HALTS, 0x75, 0x04]); // cmp bl, HALTS; jne beat
    code.extend([0xfa, 0xf4, 0xeb, 0xfd]); // cli; hlt; jmp hlt
    let beat = code.len();
    code.extend([0xb0, BEAT, 0xee]); // beat: mov al, BEAT; out dx, al
    code.push(0xb9); // mov ecx, PAUSE
    code.extend(PAUSE.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // dec ecx; jnz
    let back = beat as i64 - (code.len() as i64 + 2);
    code.extend([0xeb, back as i8 as u8]); // jmp beat
    let distance = (code.len() - (greeting_at + 4)) as u32;
    code[greeting_at..greeting_at + 4].copy_from_slice(&distance.to_le_bytes());
    code.extend(GREETING.as_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_where_the_code_looks_for_it() {
        let code = code();
        // lea's distance counts from the instruction after it.
        let distance = u32::from_le_bytes(code[15..19].try_into().unwrap()) as usize;
        assert_eq!(&code[19 + distance..], GREETING.as_bytes());
        let file = kernel();
        assert_eq!(&file[FILE_HEADER + PROGRAM_HEADER..], code);
        assert_eq!(u64::from_le_bytes(file[24..32].try_into().unwrap()), BASE);
    }
}
