"""What a program moves to and from memory, counted in its text."""

from kdjax.planning.traffic import memory_traffic

TRAFFIC = """
HloModule f

%slice_and_add (p0: f32[5,16], p1: s32[], p2: f32[16]) -> f32[16] {
  %p0 = f32[5,16] parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[16] parameter(2)
  %row = f32[1,16] dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,16}
  %flat = f32[16] bitcast(%row)
  ROOT %sum = f32[16] add(%flat, %p2)
}

%write (p0: f32[5,16], p1: f32[16], p2: s32[]) -> f32[5,16] {
  %p0 = f32[5,16] parameter(0)
  %p1 = f32[16] parameter(1)
  %p2 = s32[] parameter(2)
  %row = f32[1,16] bitcast(%p1)
  ROOT %updated = f32[5,16] dynamic-update-slice(%p0, %row, %p2, %p2)
}

%body (state: (s32[], f32[5,16], f32[16])) -> (s32[], f32[5,16], f32[16]) {
  %state = (s32[], f32[5,16], f32[16]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[5,16] get-tuple-element(%state), index=1
  %x = f32[16] get-tuple-element(%state), index=2
  %y = f32[16] fusion(%rows, %i, %x), kind=kLoop, calls=%slice_and_add
  %all = f32[5,16] fusion(%rows, %y, %i), kind=kLoop, calls=%write
  ROOT %next = (s32[], f32[5,16], f32[16]) tuple(%i, %all, %y)
}

ENTRY %main (a: f32[5,16], b: f32[16]) -> f32[16] {
  %a = f32[5,16] parameter(0)
  %b = f32[16] parameter(1)
  %c = f32[16] copy(%b)
  %first = (s32[], f32[5,16], f32[16]) tuple(%i, %a, %c)
  %loop = (s32[], f32[5,16], f32[16]) while(%first), condition=%less, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %last = f32[16] get-tuple-element(%loop), index=2
}
"""


def test_memory_traffic_counts_what_is_sliced_and_updated_and_every_round():
    row, number = 4 * 16, 4
    read_and_added = (row + number + row) + row
    written = (row + number) + row
    assert memory_traffic(TRAFFIC) == 2 * row + 5 * (read_and_added + written)


# As libtpu writes it: rows of 100 padded to 128, and S(1) for the memory on the chip.
ON_CHIP = """
HloModule f

%add_row (p0: f32[4,16,100], p1: f32[16,100]) -> f32[4,16,100] {
  %p0 = f32[4,16,100]{2,1,0:T(8,128)} parameter(0)
  %p1 = f32[16,100]{1,0:T(8,128)S(1)} parameter(1)
  %rows = f32[4,16,100]{2,1,0:T(8,128)} broadcast(%p1), dimensions={1,2}
  ROOT %sum = f32[4,16,100]{2,1,0:T(8,128)S(1)} add(%p0, %rows)
}

ENTRY %main (a: f32[4,16,100], w: f32[3,16,100]) -> f32[4,16,100] {
  %a = f32[4,16,100]{2,1,0:T(8,128)} parameter(0)
  %w = f32[3,16,100]{2,1,0:T(8,128)} parameter(1)
  %slice-start = ((f32[3,16,100]{2,1,0:T(8,128)}), f32[1,16,100]{2,1,0:T(8,128)S(1)}, \
s32[]{:S(2)}) slice-start(%w), slice={[0:1], [0:16], [0:100]}
  %slice-done = f32[1,16,100]{2,1,0:T(8,128)S(1)} slice-done(%slice-start)
  %row = f32[16,100]{1,0:T(8,128)S(1)} custom-call(%slice-done), custom_call_target="ConcatBitcast"
  %sum = f32[4,16,100]{2,1,0:T(8,128)S(1)} fusion(%a, %row), kind=kLoop, calls=%add_row
  %copy-start = (f32[4,16,100]{2,1,0:T(8,128)}, f32[4,16,100]{2,1,0:T(8,128)S(1)}, \
u32[]{:S(2)}) copy-start(%sum)
  ROOT %copy-done = f32[4,16,100]{2,1,0:T(8,128)} copy-done(%copy-start)
}
"""


def test_what_lies_on_the_chip_is_not_moved():
    row, number = 4 * 16 * 128, 4
    sliced, read, copied_back = row, 4 * row, 4 * row
    assert memory_traffic(ON_CHIP, spaces=True) == sliced + read + copied_back
    on_chip = row + (row + 4 * row) + (4 * row + number)
    assert memory_traffic(ON_CHIP) == sliced + read + copied_back + on_chip
