/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/x86/amx_tile.h
 * The eight tile registers, as one of two implementations: AMX instructions where the file is
 * compiled for them, else plain C that computes the same, so that everything around the registers
 * is tested on any machine. A tile has 16 rows of 64 bytes.
 *
 * tile_multiply(c, a, b): c[m][n] += sum over k of a[m][k] * b[k / 2][2n + k % 2], where a holds 16
 * rows of 32 bfloat16, b 16 rows of 16 pairs of bfloat16, c 16 rows of 16 float32.
 * tile_multiply_int8(c, a, b): c[m][n] += sum over k of a[m][k] * b[k / 4][4n + k % 4], where a
 * holds 16 rows of 64 int8, b 16 rows of 16 fours of int8, c 16 rows of 16 int32. */
#ifndef KT_BACKENDS_CPU_X86_AMX_TILE_H
#define KT_BACKENDS_CPU_X86_AMX_TILE_H

#include <stdint.h>
#include <string.h>

enum { TILE_BYTES = 1024, TILE_LINE = 64 };

/** Rows of a register after tile_shape(first, second), 1 to 16 each: of the results 0 and 1 and
 * their left factor 4, and of 2, 3 and 5. A product takes as many cycles as its result has rows. */
static inline int tile_rows(int t, int first, int second)
{
    return t < 2 || t == 4 ? first : t < 4 || t == 5 ? second : 16;
}

#if defined(__AMX_TILE__)
#include <immintrin.h>

#define tile_zero(t) _tile_zero(t)
#define tile_load(t, p, stride) _tile_loadd(t, p, stride)
#define tile_store(t, p, stride) _tile_stored(t, p, stride)
#define tile_multiply(c, a, b) _tile_dpbf16ps(c, a, b)
#define tile_multiply_int8(c, a, b) _tile_dpbssd(c, a, b)

/** What was written to memory before is what tiles load after: the intrinsics do not say that they
 * read it. */
static inline void tile_see(const void *memory)
{
    __asm__ volatile("" : : "r"(memory) : "memory");
}

/** Registers become zero. A thread that has entered has 16 rows everywhere. */
static inline void tile_shape(int first, int second)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = TILE_LINE;
        config.rows[i] = (uint8_t)tile_rows(i, first, second);
    }
    tile_see(&config);
    _tile_loadconfig(&config);
}

/** Before a thread uses the registers, and after. */
static void tile_enter(void)
{
    tile_shape(16, 16);
}

static void tile_leave(void)
{
    _tile_release();
    _mm_sfence();
}
#else
#include "weights/dtype.h"

/* A thread that has not entered has 16 rows of NaN, or -1, everywhere, whatever shape it sets. */
static _Thread_local struct {
    int entered;
    int rows[8];
    union {
        uint16_t bf16[16][32];
        float f32[16][16];
        int8_t i8[16][64];
        int32_t i32[16][16];
    } tile[8];
} registers;

static inline void tile_see(const void *memory)
{
    (void)memory;
}

static inline int rows_of(int t)
{
    return registers.entered ? registers.rows[t] : 16;
}

static inline void tile_zero(int t)
{
    memset(&registers.tile[t], registers.entered ? 0 : 0xff, TILE_BYTES);
}

static inline void tile_load(int t, const void *p, int64_t stride)
{
    tile_zero(t);
    for (int i = 0; registers.entered && i < rows_of(t); i++)
        memcpy(registers.tile[t].bf16[i], (const char *)p + i * stride, TILE_LINE);
}

static inline void tile_store(int t, void *p, int64_t stride)
{
    for (int i = 0; i < rows_of(t); i++)
        memcpy((char *)p + i * stride, registers.tile[t].bf16[i], TILE_LINE);
}

/* Where the instructions would fault results become NaN, or -1. */
static inline void tile_check(int c, int a, int b)
{
    if (rows_of(c) != rows_of(a) || rows_of(b) != 16)
        memset(&registers.tile[c], 0xff, TILE_BYTES);
}

static inline void tile_multiply(int c, int a, int b)
{
    tile_check(c, a, b);
    for (int m = 0; m < rows_of(c); m++)
        for (int k = 0; k < 32; k++) {
            float x = kt_bf16_to_f32(registers.tile[a].bf16[m][k]);
            for (int n = 0; n < 16; n++)
                registers.tile[c].f32[m][n] +=
                    x * kt_bf16_to_f32(registers.tile[b].bf16[k / 2][2 * n + k % 2]);
        }
}

static inline void tile_multiply_int8(int c, int a, int b)
{
    tile_check(c, a, b);
    for (int m = 0; m < rows_of(c); m++)
        for (int k = 0; k < 64; k++) {
            int32_t x = registers.tile[a].i8[m][k];
            for (int n = 0; n < 16; n++)
                registers.tile[c].i32[m][n] += x * registers.tile[b].i8[k / 4][4 * n + k % 4];
        }
}

static inline void tile_shape(int first, int second)
{
    for (int t = 0; t < 8; t++) {
        registers.rows[t] = tile_rows(t, first, second);
        tile_zero(t);
    }
}

static void tile_enter(void)
{
    registers.entered = 1;
    tile_shape(16, 16);
}

static void tile_leave(void)
{
    registers.entered = 0;
}
#endif

#endif
