/* SPDX-License-Identifier: Apache-2.0 */
#include "text/template.h"

#define TEXT(text)                                                                                 \
    {                                                                                              \
        KT_SLOT_TEXT, text                                                                         \
    }
#define BOS                                                                                        \
    {                                                                                              \
        KT_SLOT_BOS, NULL                                                                          \
    }
#define EOS                                                                                        \
    {                                                                                              \
        KT_SLOT_EOS, NULL                                                                          \
    }

static const struct kt_template templates[] = {
    {
        .name = "default",
        .system = {TEXT("System: {{content}}"), EOS, TEXT("\n")},
        .user = {TEXT("Human: {{content}}"), EOS, TEXT("\nAssistant:")},
        .assistant = {TEXT("{{content}}"), EOS, TEXT("\n")},
        .default_system = "",
    },
    {
        .name = "deepseek",
        .prefix = {BOS},
        .system = {TEXT("{{content}}\n\n")},
        .user = {TEXT("User: {{content}}\n\nAssistant:")},
        .assistant = {TEXT("{{content}}"), EOS},
        .default_system = "",
    },
    {
        .name = "deepseek3",
        .prefix = {BOS},
        .system = {TEXT("{{content}}")},
        .user = {TEXT("<｜User｜>{{content}}<｜Assistant｜>")},
        .assistant = {TEXT("{{content}}"), EOS},
        .default_system = "",
    },
    {
        .name = "qwen",
        .system = {TEXT("<|im_start|>system\n{{content}}<|im_end|>\n")},
        .user = {TEXT("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n")},
        .assistant = {TEXT("{{content}}<|im_end|>\n")},
        .observation = {TEXT("<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response>"
                             "<|im_end|>\n<|im_start|>assistant\n")},
        .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        .stop_words = {"<|im_end|>"},
        .replace_eos = true,
    },
};

const struct kt_template *kt_template_find(const char *name)
{
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++)
        if (strcmp(templates[i].name, name) == 0)
            return &templates[i];
    return NULL;
}

const char *kt_template_names(void)
{
    return "default, deepseek, deepseek3, qwen";
}
