/* SPDX-License-Identifier: Apache-2.0 */
/** \file text/bpe.h
 * Byte pair encoding of one word (Sennrich et al., arXiv 1508.07909): the adjacent pair of the
 * lowest rank is merged first, the leftmost among equals, until no pair has a merge. */
#ifndef KT_TEXT_BPE_H
#define KT_TEXT_BPE_H

#include "text/vocab.h"

#define KT_BPE_WORD_MAX ((size_t)1 << 29)

struct kt_bpe {
    bool byte_level;       /**< symbols are bytes, not characters */
    int32_t byte_ids[256]; /**< with byte_level: token of a byte; -1 when the vocabulary lacks it */
    bool byte_fallback;    /**< an unknown symbol is spelled by tokens of its bytes, if all exist */
    int32_t fallback_ids[256]; /**< tokens "<0x00>" to "<0xFF>"; -1 when the vocabulary lacks one */
    int32_t unknown;           /**< stands for an unknown symbol; -1 = leave it out */
    bool fuse_unknown;         /**< adjacent unknown symbols become one token */
    bool ignore_merges;        /**< a word that is a token as a whole is taken as it is */
    struct kt_merge {
        uint64_t pair; /**< left id << 32 | right id; UINT64_MAX = free slot */
        uint32_t rank;
        int32_t id;
    } * merges; /**< open addressing */
    size_t num_slots, count;
};

/** Memory that words share; zero it first. */
struct kt_bpe_scratch {
    struct kt_bpe_symbol {
        int32_t id; /**< -1 = merged into its left neighbour */
        int32_t previous, next;
    } * symbols;
    size_t symbols_capacity;
    struct kt_bpe_candidate {
        uint32_t rank;
        int32_t position, id;
    } * heap;
    size_t heap_count, heap_capacity;
    struct kt_bytes spelled;
    int32_t count; /* of symbols */
    bool unknown;  /* an unknown symbol waits to be written */
};

/** Room for the merges of a file of `expected` lines. False when memory ran out. */
bool kt_bpe_init(struct kt_bpe *bpe, size_t expected);
/** A later merge of the same pair replaces an earlier one. Not more than `expected` in all. */
void kt_bpe_add_merge(struct kt_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id);
void kt_bpe_free(struct kt_bpe *bpe);

/** Appends the ids of a word of valid UTF-8, or with byte_level of any bytes, of at most
 * KT_BPE_WORD_MAX bytes. `vocab` is the one that the ids of `bpe` come from. False when memory ran
 * out. Time is O(n log n). */
bool kt_bpe_encode(const struct kt_bpe *bpe, const struct kt_vocab *vocab,
                   struct kt_bpe_scratch *scratch, const char *word, size_t length,
                   struct kt_ids *ids);
void kt_bpe_scratch_free(struct kt_bpe_scratch *scratch);

#endif
