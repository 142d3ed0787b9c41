/* SPDX-License-Identifier: Apache-2.0 */
#include "text/utf8.h"

/* Length of the sequence that `lead` starts and the range of its second byte; 0 = not a lead. */
static int sequence(unsigned char lead, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (lead < 0x80)
        return 1;
    if (lead >= 0xc2 && lead <= 0xdf)
        return 2;
    if (lead >= 0xe0 && lead <= 0xef) {
        if (lead == 0xe0)
            *low = 0xa0;
        if (lead == 0xed)
            *high = 0x9f;
        return 3;
    }
    if (lead >= 0xf0 && lead <= 0xf4) {
        if (lead == 0xf0)
            *low = 0x90;
        if (lead == 0xf4)
            *high = 0x8f;
        return 4;
    }
    return 0;
}

struct kt_utf8 kt_utf8_next(const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char low, high;
    int length = sequence(s[0], &low, &high);
    if (length == 1)
        return (struct kt_utf8){s[0], 1, KT_UTF8_VALID};
    if (length == 0)
        return (struct kt_utf8){0xfffd, 1, KT_UTF8_INVALID};
    uint32_t code = s[0] & (0x7fu >> length);
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= size)
            return (struct kt_utf8){0xfffd, (uint8_t)i, KT_UTF8_TRUNCATED};
        if (s[i] < low || s[i] > high)
            return (struct kt_utf8){0xfffd, (uint8_t)i, KT_UTF8_INVALID};
        code = code << 6 | (s[i] & 0x3f);
        low = 0x80;
        high = 0xbf;
    }
    return (struct kt_utf8){code, (uint8_t)length, KT_UTF8_VALID};
}

size_t kt_utf8_put(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)((0xf00u >> length) | code);
    return length;
}

bool kt_utf8_is_valid(const char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        struct kt_utf8 c = kt_utf8_next(text + i, size - i);
        if (c.kind != KT_UTF8_VALID)
            return false;
        i += c.length;
    }
    return true;
}

bool kt_utf8_append_lossy(struct kt_bytes *out, const char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        struct kt_utf8 c = kt_utf8_next(text + i, size - i);
        bool good = c.kind == KT_UTF8_VALID;
        if (!kt_bytes_append(out, good ? text + i : "\xef\xbf\xbd", good ? c.length : 3))
            return false;
        i += c.length;
    }
    return true;
}

bool kt_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

/* Bytes that stand for themselves are 33..126, 161..172 and 174..255. */
uint32_t kt_alphabet_from_byte(unsigned char byte)
{
    if (byte <= 32)
        return 256u + byte;
    if (byte >= 127 && byte <= 160)
        return 256u + 33 + (byte - 127u);
    return byte == 173 ? 256u + 67 : byte;
}

int kt_alphabet_to_byte(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
        return (int)c;
    if (c >= 256 && c <= 288)
        return (int)c - 256;
    if (c >= 289 && c <= 322)
        return (int)c - 289 + 127;
    return c == 323 ? 173 : -1;
}
