"""Check the headers of a JPEG or JPEG-LS stream before GDCM decodes it.

GDCM ends the whole process if the stream's size differs from the DICOM header's, or if a table is missing; nothing
can catch that.
"""

from data.quarantine import BadStudy, damaged

_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_HUFFMAN = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7}
_TABLES, _START_OF_SCAN = 0xC4, 0xDA
_STANDALONE = {0x01, *range(0xD0, 0xD9)}


def check_frame(stream: bytes, rows: int, columns: int, bits_allocated: int) -> int:
    """Return the bits of a compressed grey frame; raise BadStudy where its file's header tells of another frame."""
    found = _frame(stream)
    if found is None:
        raise damaged("a JPEG stream whose headers are not whole", "a whole stream")
    precision, height, width, channels = found
    if (height, width, channels) != (rows, columns, 1) or precision > bits_allocated:
        raise BadStudy(
            f"a JPEG frame of {height} x {width}, {channels} channels, {precision} bits",
            f"{rows} x {columns}, 1 channel, at most {bits_allocated} bits as the header says",
            "correct the header, or remove the series: header and stream are not of one image",
        )
    return precision


def _frame(stream: bytes) -> tuple[int, int, int, int] | None:
    """Return precision, height, width and channels of the first frame header; None where headers are not whole.

    They are whole if markers follow each other up to the start of the scan, with the tables of a Huffman code.
    """
    place, frame, is_coded = 2, None, False
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        marker, length = stream[place + 1], int.from_bytes(stream[place + 2 : place + 4])
        if marker == 0xFF:  # a byte of filling
            place += 1
            continue
        if marker < 0xC0 and marker not in _STANDALONE:
            return None
        if marker in _START_OF_FRAME and frame is None and place + 10 <= len(stream):
            height, width = (int.from_bytes(stream[at : at + 2]) for at in (place + 5, place + 7))
            frame = stream[place + 4], height, width, stream[place + 9]
            is_coded = marker not in _HUFFMAN
        is_coded |= marker == _TABLES
        if marker == _START_OF_SCAN:
            return frame if is_coded else None
        place += 2 if marker in _STANDALONE else 2 + length
    return None
