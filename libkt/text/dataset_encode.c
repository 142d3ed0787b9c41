/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "text/dataset.h"

/* How many ids of a question and of its answer stay when both may have `room`. */
static void fit(size_t *question, size_t *answer, size_t room)
{
    size_t most = room;
    if (*answer * 2 >= room) {
        if (*question * 2 < room)
            most = room - *question;
        else
            most = (size_t)((double)room * ((double)*answer / (double)(*question + *answer)));
    }
    *answer = most < *answer ? most : *answer;
    *question = room - *answer < *question ? room - *answer : *question;
}

/* A reply without a thought gets an empty one, which is learned where the model is to think. */
static kt_status encode_reply(const struct kt_chat *chat, size_t i, struct kt_turn turn,
                              struct kt_bytes *buffer, struct kt_ids *ids, size_t *ends)
{
    if (chat->thinking == KT_THINKING_OFF)
        KT_TRY(kt_chat_remove_thoughts(chat, &turn, buffer));
    if (kt_chat_lacks_thought(chat, &turn)) {
        KT_TRY(kt_chat_encode_empty_thought(chat, ids));
        if (chat->thinking != KT_THINKING_ON)
            ends[i - 1] = ids->count;
    }
    return kt_chat_encode(chat, i, &turn, NULL, 0, ids);
}

/* Ids of all turns, one after another; ends[i] is where those of turn i end. */
static kt_status encode_turns(const struct kt_chat *chat, const kt_dataset_options *options,
                              const struct kt_conversation *c, struct kt_ids *ids, size_t *ends)
{
    const char *system = c->system;
    size_t length = c->system_length;
    if (!length) {
        system = options->default_system ? options->default_system : chat->template->default_system;
        length = strlen(system);
    }
    struct kt_bytes buffer = {0};
    kt_status status = KT_OK;
    for (size_t i = 0; i < c->count && status == KT_OK; i++) {
        status = i % 2 ? encode_reply(chat, i, c->turns[i], &buffer, ids, ends)
                       : kt_chat_encode(chat, i, &c->turns[i], system, length, ids);
        ends[i] = ids->count;
    }
    free(buffer.data);
    return status;
}

static bool push_label(struct kt_ids *labels, const struct kt_ids *all, size_t at, size_t count,
                       bool learn)
{
    if (learn)
        return kt_ids_append(labels, all->data + at, count);
    for (size_t i = 0; i < count; i++)
        if (!kt_ids_push(labels, KT_IGNORE_LABEL))
            return false;
    return true;
}

struct kept {
    size_t question, num_question, answer, num_answer;
};

/* Cuts the pairs in the order in which they have priority; a pair without room is left out whole.
 */
static size_t cut_pairs(const size_t *ends, size_t pairs, bool last_first, size_t used,
                        size_t cutoff, struct kept *kept)
{
    size_t n = 0;
    for (; n < pairs && used < cutoff; n++) {
        size_t pair = last_first ? pairs - 1 - n : n;
        size_t begin = pair ? ends[2 * pair - 1] : 0, middle = ends[2 * pair];
        struct kept *k = &kept[n];
        *k = (struct kept){begin, middle - begin, middle, ends[2 * pair + 1] - middle};
        fit(&k->num_question, &k->num_answer, cutoff - used);
        used += k->num_question + k->num_answer;
    }
    return n;
}

static bool append_pair(const struct kt_chat *chat, const kt_dataset_options *options,
                        const struct kt_ids *all, const struct kept *k, size_t place,
                        struct kt_ids *ids, struct kt_ids *labels)
{
    size_t first = labels->count;
    bool learn_answer = !options->mask_history || place == 0;
    if (!kt_ids_append(ids, all->data + k->question, k->num_question) ||
        !kt_ids_append(ids, all->data + k->answer, k->num_answer) ||
        !push_label(labels, all, k->question, k->num_question, options->train_on_prompt) ||
        !push_label(labels, all, k->answer, k->num_answer, learn_answer))
        return false;
    if (chat->template->efficient_eos && place != 0 && k->num_question)
        labels->data[first] = chat->eos;
    return true;
}

static kt_status assemble(const struct kt_chat *chat, const kt_dataset_options *options,
                          const struct kt_ids *all, const size_t *ends, size_t pairs,
                          struct kt_ids *ids, struct kt_ids *labels)
{
    bool eos_last = chat->template->efficient_eos, last_first = options->mask_history != 0;
    struct kept *kept = malloc((pairs + 1) * sizeof *kept);
    if (!kept)
        return kt_fail_memory(chat->tokenizer->ctx, pairs * sizeof *kept, "an example");
    size_t n = cut_pairs(ends, pairs, last_first, eos_last, (size_t)options->cutoff_len, kept);
    bool ok = true;
    for (size_t i = 0; i < n && ok; i++) {
        size_t place = last_first ? n - 1 - i : i;
        ok = append_pair(chat, options, all, &kept[place], place, ids, labels);
    }
    if (ok && eos_last)
        ok = kt_ids_push(ids, chat->eos) && kt_ids_push(labels, chat->eos);
    free(kept);
    return ok ? KT_OK : kt_fail_memory(chat->tokenizer->ctx, all->count * 8, "an example");
}

kt_status kt_dataset_encode(const struct kt_chat *chat, const kt_dataset_options *options,
                            const struct kt_conversation *conversation, struct kt_ids *ids,
                            struct kt_ids *labels)
{
    struct kt_ids all = {0};
    size_t *ends = malloc((conversation->count + 1) * sizeof *ends);
    if (!ends)
        return kt_fail_memory(chat->tokenizer->ctx, conversation->count, "an example");
    kt_status status = encode_turns(chat, options, conversation, &all, ends);
    if (status == KT_OK)
        status = assemble(chat, options, &all, ends, conversation->count / 2, ids, labels);
    free(all.data);
    free(ends);
    return status;
}
