/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "app.h"

#define EXPERTS                                                                                    \
    "  --experts NAME  how routed experts are computed: amx, amx-int8, cpu (those without "        \
    "AMX),\n"                                                                                      \
    "                  reference (plain C, slow), device (the layer's GPU), or auto;\n"            \
    "                  the same as kt_experts=NAME\n"

#define PROFILE                                                                                    \
    "  --trace FILE    write what ran when on each device, for ui.perfetto.dev\n"                  \
    "  --profile       print how busy each device and the CPU were, and with what\n"

#define CONFIGURATION                                                                              \
    "X.yaml is a LLaMA-Factory configuration, and key=value arguments go over\n"                   \
    "it; kt help keys lists every key.\n"

static const char info_help[] =
    "usage: kt info MODEL|X.yaml [--tensors]\n\n"
    "Prints a checkpoint's architecture, its parameters (all, and those that one token passes) "
    "and\n"
    "its tensors by data type.\n\n"
    "  --tensors  every tensor: name, data type, shape, file; those that are not used are marked\n";

static const char data_help[] =
    "usage: kt data X.yaml [--jsonl] [--num N] [key=value ...]\n\n"
    "Shows what the model will be trained on: the first examples after the template, the part "
    "that\n"
    "takes no part in the loss dimmed. " CONFIGURATION "\n"
    "  --jsonl  every example of `dataset`, in the file's order, as one line\n"
    "           {\"input_ids\": [...], \"labels\": [...]}; -100 = no part in the loss\n"
    "  --num N  how many examples to show (3)\n";

static const char train_help[] =
    "usage: kt train X.yaml [--check] [--experts NAME] [--trace FILE] [--profile] [key=value "
    "...]\n\n"
    "Fine-tunes with LoRA. " CONFIGURATION "\n"
    "  --check         read and check the configuration, then stop\n" EXPERTS PROFILE "\n"
    "Ctrl-C finishes the running step, saves a checkpoint and prints the command that goes on "
    "from\n"
    "it with the same result as an uninterrupted run. A second Ctrl-C drops the running step and\n"
    "saves the one before it; a third ends the program. SIGTERM and SIGHUP are a Ctrl-C.\n";

static const char chat_help[] =
    "usage: kt chat X.yaml|MODEL [--experts NAME] [--trace FILE] [--profile] [key=value ...]\n\n"
    "Talks with a model, with adapter_name_or_path or without. " CONFIGURATION "\n" EXPERTS PROFILE
    "\n"
    "Lines from a pipe are one prompt each; every answer is printed on lines of its own. "
    "Commands:\n"
    "  /clear      forget the conversation\n"
    "  /save FILE  write the conversation as JSON\n"
    "  /help       list the commands\n"
    "  /exit       leave (so does Ctrl-D)\n"
    "Ctrl-C stops the answer that is being written.\n";

static const char generate_help[] =
    "usage: kt generate X.yaml|MODEL --prompt TEXT [--experts NAME] [--trace FILE]\n"
    "                   [--profile] [key=value ...]\n\n"
    "Prints the answer to one prompt, for scripts. " CONFIGURATION "\n"
    "  --prompt TEXT   the prompt; - reads it from standard input\n" EXPERTS PROFILE "\n"
    "Without the key template the text is continued as it stands.\n";

static const char convert_help[] =
    "usage: kt convert SRC DST --to bf16|fp8|int8|int4|f32 [--experts-only] [key=value ...]\n\n"
    "Writes the checkpoint in folder SRC into folder DST with its linears in another format;\n"
    "everything else is copied. The keys cpu_infer and memory_limit count.\n\n"
    "  --to FORMAT     bf16, f32; fp8: one scale for 128 x 128 numbers, as DeepSeek-V3 is "
    "released;\n"
    "                  int8: one scale for a row; int4: one scale for 128 numbers of a row\n"
    "  --experts-only  the routed experts alone\n\n"
    "Ctrl-C leaves only whole files, and the same command goes on from there; so do SIGTERM and\n"
    "SIGHUP.\n";

const command commands[] = {
    {"train", train_command, "fine-tune a model with LoRA", train_help, true},
    {"chat", chat_command, "talk with a model", chat_help, false},
    {"generate", generate_command, "answer one prompt", generate_help, false},
    {"data", data_command, "show what a dataset becomes", data_help, false},
    {"convert", convert_command, "write a checkpoint in another format", convert_help, true},
    {"info", info_command, "describe a checkpoint", info_help, false},
    {0},
};

const command *command_find(const char *name)
{
    for (const command *c = commands; c->name; c++)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
}
