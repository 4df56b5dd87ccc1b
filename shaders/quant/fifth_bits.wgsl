// Bits 0..3 of h, each to bit 4 of its byte: the product has bit i at i + 7k for every k < 4, and i
// = k is a byte's first bit.
fn fifth_bits(h: u32) -> u32 {
    return (((h & 15u) * 0x00204081u) & 0x01010101u) << 4u;
}
