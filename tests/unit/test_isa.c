/* SPDX-License-Identifier: Apache-2.0 */
/* No CPU can meet an instruction that it lacks: the library is disassembled, and each object may
 * hold only what the instruction set in its name has; all others must run on any x86-64 CPU. */
#include <check.h>
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "main.h"

/* The last three build on AVX512_BF16; AMX_INT8 has AMX too, AVX512_VBMI stands by itself. */
enum set { BASELINE, AVX2, AVX512, AVX512_BF16, AVX512_VBMI, AMX, AMX_INT8, SETS };

static const char *const set_names[SETS] = {"baseline",
                                            "AVX2",
                                            "AVX-512",
                                            "AVX-512-BF16",
                                            "AVX-512-VBMI",
                                            "AMX-BF16",
                                            "AMX-BF16 and AMX-INT8"};

static bool may_hold(enum set set, enum set needed)
{
    return needed == set || (needed < set && needed <= AVX512_BF16) ||
           (set == AMX_INT8 && needed == AMX);
}

/* By the objects' names: a file is named after its set, or its static library is. */
static enum set set_of_object(const char *object)
{
    if (strstr(object, "kt-amx-int8-amx."))
        return AMX_INT8;
    if (strstr(object, "kt-amx-amx.") || strstr(object, "kt-kernels-amx."))
        return AMX;
    if (strstr(object, "_avx512vbmi.c"))
        return AVX512_VBMI;
    if (strstr(object, "_avx512bf16.c") || strstr(object, "kt-amx-avx512bf16.") ||
        strstr(object, "kt-amx-int8-avx512bf16."))
        return AVX512_BF16;
    if (strstr(object, "_avx512.c"))
        return AVX512;
    return strstr(object, "_avx2.c") ? AVX2 : BASELINE;
}

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* %k0 .. %k7 */
static bool has_mask(const char *instruction)
{
    for (const char *p = instruction; (p = strstr(p, "%k")); p += 2)
        if (isdigit((unsigned char)p[2]))
            return true;
    return false;
}

/* %xmm16 .. %xmm31 and %ymm16 ..: EVEX only */
static bool has_upper_register(const char *instruction)
{
    for (const char *p = instruction; (p = strstr(p, "mm")); p += 2)
        if (p > instruction && (p[-1] == 'x' || p[-1] == 'y') && atoi(p + 2) >= 16)
            return true;
    return false;
}

/* Mnemonics with the v of the VEX and EVEX prefixes, and those with a VEX prefix and no v. */
static bool has_vex(const char *instruction)
{
    static const char *const legacy[] = {"verr",     "verw",     "vmcall",
                                         "vmlaunch", "vmresume", "vmxoff"};
    static const char *const bmi[] = {"andn", "bextr", "bzhi", "pdep", "pext", "mulx",
                                      "rorx", "sarx",  "shlx", "shrx", "bls"};
    for (size_t i = 0; i < sizeof legacy / sizeof *legacy; i++)
        if (begins(instruction, legacy[i]))
            return false;
    for (size_t i = 0; i < sizeof bmi / sizeof *bmi; i++)
        if (begins(instruction, bmi[i]) && !begins(instruction, "andnp"))
            return true;
    return instruction[0] == 'v' || strstr(instruction, "%ymm");
}

/* Those of VBMI, shuffles by single bytes, beside vpermq and the like of AVX-512; and of GFNI. */
static bool has_vbmi(const char *instruction)
{
    static const char *const names[] = {"vpermb ", "vpermi2b ", "vpermt2b ", "vpmultishiftqb ",
                                        "vgf2p8affineqb "};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (begins(instruction, names[i]))
            return true;
    return false;
}

/* The least set that has the instruction. */
static enum set set_of_instruction(const char *instruction)
{
    if (begins(instruction, "tdpb") && !begins(instruction, "tdpbf16ps"))
        return AMX_INT8;
    if (strstr(instruction, "%tmm") || strstr(instruction, "tilecfg") ||
        begins(instruction, "tilerelease"))
        return AMX;
    if (has_vbmi(instruction))
        return AVX512_VBMI;
    if (begins(instruction, "vdpbf16ps") || begins(instruction, "vcvtne"))
        return AVX512_BF16;
    if (strstr(instruction, "%zmm") || has_mask(instruction) || has_upper_register(instruction))
        return AVX512;
    return has_vex(instruction) ? AVX2 : BASELINE;
}

START_TEST(instructions_are_classified)
{
    static const struct {
        const char *text;
        enum set set;
    } cases[] = {
        {"mov    %rax,%rbx", BASELINE},
        {"andnps %xmm1,%xmm2", BASELINE},
        {"verr   %ax", BASELINE},
        {"addps  %xmm15,%xmm2", BASELINE},
        {"vmovups %xmm0,(%rdi)", AVX2},
        {"andn   %eax,%ebx,%ecx", AVX2},
        {"vfmadd231ps %ymm1,%ymm15,%ymm3", AVX2},
        {"vmovups %ymm16,(%rdi)", AVX512},
        {"kmovd  %eax,%k1", AVX512},
        {"vaddps %zmm1,%zmm2,%zmm3", AVX512},
        {"vmovdqu8 (%rdi),%xmm0{%k2}{z}", AVX512},
        {"vdpbf16ps %zmm1,%zmm2,%zmm3", AVX512_BF16},
        {"vcvtne2ps2bf16 %zmm1,%zmm2,%zmm3", AVX512_BF16},
        {"vpermb (%rcx),%zmm12,%zmm17", AVX512_VBMI},
        {"vpermt2b %zmm1,%zmm2,%zmm3", AVX512_VBMI},
        {"vgf2p8affineqb $0x3c,%zmm1,%zmm2,%zmm3", AVX512_VBMI},
        {"vpermi2w %zmm1,%zmm2,%zmm3", AVX512},
        {"tdpbf16ps %tmm1,%tmm2,%tmm3", AMX},
        {"tdpbssd %tmm1,%tmm2,%tmm3", AMX_INT8},
        {"tdpbuud %tmm1,%tmm2,%tmm3", AMX_INT8},
        {"ldtilecfg (%rdi)", AMX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_msg(set_of_instruction(cases[i].text) == cases[i].set, "%s", cases[i].text);
    ck_assert(may_hold(AMX, AVX512_BF16) && may_hold(AMX, AMX) && !may_hold(AVX2, AVX512));
    ck_assert(!may_hold(AMX, AVX512_VBMI) && !may_hold(AVX512_VBMI, AMX));
}
END_TEST

struct tally {
    int objects[SETS];
    int instructions[SETS];
    int used[SETS]; /* objects' instructions that need exactly their set */
};

static void read_listing(FILE *listing, struct tally *t)
{
    char line[512];
    enum set set = BASELINE;
    char object[256] = "";
    while (fgets(line, sizeof line, listing)) {
        const char *tab = strchr(line, '\t');
        if (strstr(line, "file format")) {
            sscanf(line, "%255[^:]", object);
            set = set_of_object(object);
            t->objects[set]++;
        } else if (tab) {
            enum set needed = set_of_instruction(tab + 1);
            ck_assert_msg(may_hold(set, needed), "%s, compiled for %s, has %s", object,
                          set_names[set], tab + 1);
            t->instructions[set]++;
            t->used[set] += needed == set;
        }
    }
}

START_TEST(objects_hold_what_their_set_has)
{
    struct tally t = {0};
    if (system("objdump --version > /dev/null 2>&1") != 0)
        return; /* nothing to disassemble with */
    FILE *listing = popen("objdump -d --no-show-raw-insn " KT_INTERNAL_LIBRARY, "r");
    ck_assert_ptr_nonnull(listing);
    read_listing(listing, &t);
    ck_assert_int_eq(pclose(listing), 0);
    ck_assert_int_gt(t.objects[BASELINE], 20);
    ck_assert_int_gt(t.instructions[BASELINE], 10000);
    for (enum set set = AVX2; set <= AVX512_BF16; set++) {
        ck_assert_int_ge(t.objects[set], 2); /* kernels and decoders */
        ck_assert_int_gt(t.used[set], 10);
    }
    ck_assert_int_eq(t.objects[AVX512_VBMI], 2); /* kernels and decoders */
    ck_assert_int_gt(t.used[AVX512_VBMI], 0);
#if defined(KT_HAVE_AMX)
    ck_assert_int_eq(t.objects[AMX_INT8], 1);
    ck_assert_int_gt(t.used[AMX], 10);
    ck_assert_int_gt(t.used[AMX_INT8], 4);
#endif
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("isa", .timeout = 120),
#if defined(__x86_64__)
        TEST(instructions_are_classified),
        TEST(objects_hold_what_their_set_has),
#endif
    };
    return RUN_TESTS("isa", tests);
}
