/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of the experts backend "amx" with emulated tiles: what is read ahead, in which order
 * products are made, and FP8 by pairs of rows and without its scales. */
#include "backends/amx/experts.h"
#include "expert_problem.h"
#include "weights.h"
#include "main.h"

/* Bytes of a tile of n features. */
static size_t tile_bytes(int64_t n)
{
    return (size_t)(n + KT_AMX_STEP - 1) / KT_AMX_STEP * 1024;
}

/* x [16 * tiles][n] by pack_columns or pack_rows. */
static void pack_tiles(void (*pack)(const float *const[KT_AMX_TOKENS], int64_t, void *), int tiles,
                       int64_t n, const float *x, char *to)
{
    for (int tile = 0; tile < tiles; tile++, to += tile_bytes(n)) {
        const float *tokens[KT_AMX_TOKENS];
        for (int s = 0; s < KT_AMX_TOKENS; s++, x += n)
            tokens[s] = x;
        pack(tokens, n, to);
    }
}

static int64_t furthest;

static void spied_decode(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,
                         int64_t cols, int64_t ahead, void *to, int64_t ld)
{
    furthest = ahead > furthest ? ahead : furthest;
    kt_decoders_c[KT_DECODE_BF16](w, row, col, rows, cols, ahead, to, ld);
}

static const struct {
    kt_dtype dtype;
    int fetches;
} fetchers[] = {{KT_DTYPE_F8_E4M3, 1}, {KT_DTYPE_I8, 1},   {KT_DTYPE_Q8_0, 1}, {KT_DTYPE_I4, 0},
                {KT_DTYPE_Q4_0, 0},    {KT_DTYPE_Q4_K, 0}, {KT_DTYPE_Q6_K, 0}};

enum { FETCHERS = sizeof fetchers / sizeof *fetchers };

/* Backward of more than two tiles: decoding reads ahead where an element has a byte or more. */
START_TEST(decoding_reads_ahead_by_bytes_of_an_element)
{
    enum { ROWS = 2 * KT_AMX_ROWS, COLS = 1024, LD = 64, TILES = 3 };
    struct kt_amx_kernels k;
    struct test_weight t = test_weight(fetchers[_i].dtype, 1, ROWS, COLS);
    struct kt_amx_strip strip = {.decode = spied_decode, .weight = &t.w, .cols = KT_AMX_STEP};
    void *tokens = calloc(TILES * ROWS / KT_AMX_STEP, 1024), *stage = malloc(KT_AMX_STAGE_BYTES);
    float *products = calloc(TILES * KT_AMX_TOKENS * LD, sizeof *products);
    kt_amx_kernels_init_c(&k);
    k.enter();
    for (int64_t tiles = 1; tiles <= TILES; tiles++) {
        furthest = 0;
        k.backward(&strip, NULL, tokens, tiles * KT_AMX_TOKENS, KT_AMX_STEP, 0, products, LD,
                   stage);
        ck_assert_int_eq(furthest > 0, tiles > 2 && fetchers[_i].fetches);
    }
    k.leave();
    free(tokens), free(stage), free(products);
    test_weight_free(&t);
}
END_TEST

/* -- order --------------------------------------------------------------------------------------
 */

static const kt_dtype panel_types[] = {KT_DTYPE_BF16, KT_DTYPE_F8_E4M3, KT_DTYPE_I4};

enum { PANEL_TYPES = sizeof panel_types / sizeof *panel_types };

/* Forward of more features than the tokens of a panel have, and more blocks than a place. */
START_TEST(panels_of_features_are_summed)
{
    enum { TILES = 17, BLOCKS = 5, ROWS = BLOCKS * KT_AMX_ROWS - 3, COLS = 2100, CHUNK = 256 };
    struct kt_amx_kernels k;
    struct test_weight t = test_weight(panel_types[_i], 1, ROWS, COLS);
    struct kt_amx_blocks w = {.decode = kt_decoders_c[KT_DECODE_BF16], .num = BLOCKS};
    char *columns = calloc(TILES, tile_bytes(COLS));
    void *stage = malloc(KT_AMX_STAGE_BYTES);
    float *x = test_random(2, TILES * KT_AMX_TOKENS * COLS), *row = test_random(3, COLS);
    float *products = test_random(4, BLOCKS * TILES * 512);
    float *got = test_random(5, ROWS), *want = test_random(6, ROWS);
    kt_amx_kernels_init_c(&k);
    for (int b = 0; b < BLOCKS; b++) {
        w.weight[b] = &t.w, w.first[b] = b * KT_AMX_ROWS;
        w.rows[b] = b + 1 < BLOCKS ? KT_AMX_ROWS : KT_AMX_ROWS - 3;
    }
    pack_tiles(k.pack_columns, TILES, COLS, x, columns);
    k.enter();
    k.forward(&w, &w, COLS, columns, TILES, CHUNK, products, stage);
    k.leave();
    for (int token = 0; token < TILES * KT_AMX_TOKENS; token += 37) {
        for (int r = 0; r < ROWS; r++) {
            double sum = 0;
            kt_decoders_c[KT_DECODE_ROUNDED](&t.w, r, 0, 1, COLS, 0, row, COLS);
            for (int i = 0; i < COLS; i++)
                sum +=
                    (double)row[i] * kt_bf16_to_f32(kt_f32_to_bf16(x[(int64_t)token * COLS + i]));
            want[r] = (float)sum;
            got[r] = products[((r / 16 * TILES) + token / 16) * 256 + r % 16 * 16 + token % 16];
        }
        check_close(ROWS, got, want, 1e-5);
    }
    free(columns), free(stage), free(x), free(row), free(products), free(got), free(want);
    test_weight_free(&t);
}
END_TEST

/* kt_decode_pairs_fn in plain C; `refused` counts what it does not do. */
static int refused;

static bool plain_pairs(const struct kt_weight *w, int64_t row, int64_t rows, int64_t col,
                        int64_t cols, int64_t ahead, void *to, int64_t stride)
{
    enum { MOST_COLS = 128 };
    uint16_t decoded[MOST_COLS];
    (void)ahead;
    ck_assert_int_le(cols, MOST_COLS);
    if (rows % KT_AMX_STEP || cols % 64) {
        refused++;
        return false;
    }
    for (int64_t r = 0; r < rows; r++) {
        kt_decoders_c[KT_DECODE_BF16](w, row + r, col, 1, cols, 0, decoded, cols);
        for (int64_t c = 0; c < cols; c++)
            memcpy((char *)to + test_pairs_offset(r, c, stride), &decoded[c], sizeof *decoded);
    }
    return true;
}

static const int pair_tokens[] = {1, 15, 16, 17, 31, 32, 33, 60, 80};

enum { PAIR_TOKENS = sizeof pair_tokens / sizeof *pair_tokens };

enum { PAIRS_ROWS = 2 * 96 + 20, PAIRS_COLS = 300, PAIRS_LD = 320, PAIRS_TILES = 5 };

/* products [n][PAIRS_LD] in the kernels' order of columns are `times` the sums of plain C. */
static void check_sums(const struct kt_amx_kernels *k, const struct kt_weight *w, int64_t n,
                       const float *x, const float *products, int times)
{
    static float ordered[PAIRS_TILES * KT_AMX_TOKENS * PAIRS_COLS], values[PAIRS_ROWS][PAIRS_COLS];
    static double want[PAIRS_TILES * KT_AMX_TOKENS * PAIRS_COLS];
    int is_exact = w->first_row % KT_AMX_ROWS == 0 && n <= 4 * KT_AMX_TOKENS;
    k->order_columns(products, PAIRS_LD, n, PAIRS_COLS, ordered, PAIRS_COLS);
    for (int64_t r = 0; r < PAIRS_ROWS; r++) {
        kt_weight_decode(w, r, 0, PAIRS_COLS, values[r]);
        if (!is_exact)
            round_to_bf16(PAIRS_COLS, values[r]);
    }
    for (int64_t token = 0; token < n; token++)
        for (int c = 0; c < PAIRS_COLS; c++) {
            double sum = 0;
            for (int r = 0; r < PAIRS_ROWS; r++)
                sum += (double)kt_bf16_to_f32(kt_f32_to_bf16(x[token * PAIRS_ROWS + r])) *
                       (double)values[r][c];
            want[token * PAIRS_COLS + c] = times * sum;
        }
    ck_assert_double_lt(test_error(n * PAIRS_COLS, ordered, want), 1e-6);
}

/* Where a weight begins in the one that its scales belong to: codes are taken as they are from
 * whole blocks on. */
static const int64_t first_rows[] = {5, 32, 64};

enum { FIRST_ROWS = sizeof first_rows / sizeof *first_rows };

/* Backward of 1 to 5 tiles, of whole and of partial pairs of rows and columns. */
START_TEST(pairs_of_rows_give_the_same_bits)
{
    enum { CHUNK = 96, TOKENS = PAIRS_TILES * KT_AMX_TOKENS };
    static float got[TOKENS * PAIRS_LD], want[TOKENS * PAIRS_LD];
    struct kt_amx_kernels k;
    int64_t n = pair_tokens[_i % PAIR_TOKENS];
    struct test_weight t = test_weight(KT_DTYPE_F8_E4M3, 1, PAIRS_ROWS, PAIRS_COLS);
    struct kt_amx_strip strip = {
        .decode = kt_decoders_c[KT_DECODE_BF16], .weight = &t.w, .cols = PAIRS_COLS};
    float *x = test_random(2, TOKENS * PAIRS_ROWS);
    char *rows = calloc(PAIRS_TILES, tile_bytes(PAIRS_ROWS)), *stage = malloc(KT_AMX_STAGE_BYTES);
    t.w.first_row = first_rows[_i / PAIR_TOKENS];
    kt_amx_kernels_init_c(&k);
    pack_tiles(k.pack_rows, PAIRS_TILES, PAIRS_ROWS, x, rows);
    refused = 0;
    k.enter();
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        strip.decode_pairs = NULL;
        k.backward(&strip, &strip, rows, n, CHUNK, accumulate, want, PAIRS_LD, stage);
        strip.decode_pairs = plain_pairs;
        k.backward(&strip, NULL, rows, n, CHUNK, accumulate, got, PAIRS_LD, stage);
        ck_assert(memcmp(got, want, (size_t)n * PAIRS_LD * sizeof *got) == 0);
        check_sums(&k, &t.w, n, x, want, 1 + accumulate);
    }
    k.leave();
    ck_assert_int_gt(refused, 0);
    free(rows), free(stage), free(x);
    test_weight_free(&t);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("amx_kernels", .timeout = 120),
        LOOP(decoding_reads_ahead_by_bytes_of_an_element, FETCHERS),
        LOOP(panels_of_features_are_summed, PANEL_TYPES),
        LOOP(pairs_of_rows_give_the_same_bits, PAIR_TOKENS * FIRST_ROWS),
    };
    return RUN_TESTS("amx_kernels", tests);
}
