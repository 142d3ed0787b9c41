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

#define QWEN_FORMATS                                                                               \
    .system = {TEXT("<|im_start|>system\n{{content}}<|im_end|>\n")},                               \
    .user = {TEXT("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n")},            \
    .assistant = {TEXT("{{content}}<|im_end|>\n")},                                                \
    .observation = {TEXT("<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response>"        \
                         "<|im_end|>\n<|im_start|>assistant\n")}

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
        QWEN_FORMATS,
        .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        .stop_words = {"<|im_end|>"},
        .replace_eos = true,
    },
    {
        .name = "qwen3",
        QWEN_FORMATS,
        .default_system = "",
        .stop_words = {"<|im_end|>"},
        .thought_begin = "<think>\n",
        .thought_end = "\n</think>\n\n",
        .replace_eos = true,
    },
    {
        .name = "qwen3_nothink",
        QWEN_FORMATS,
        .default_system = "",
        .stop_words = {"<|im_end|>"},
        .replace_eos = true,
    },
    {
        .name = "llama2",
        .system = {TEXT("<<SYS>>\n{{content}}\n<</SYS>>\n\n")},
        .user = {BOS, TEXT("[INST] {{content}} [/INST]")},
        .assistant = {TEXT("{{content}}"), EOS},
        .default_system = "",
        .system_in_user = true,
    },
    {
        .name = "llama3",
        .prefix = {BOS},
        .system = {TEXT("<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>")},
        .user = {TEXT("<|start_header_id|>user<|end_header_id|>\n\n{{content}}<|eot_id|>"
                      "<|start_header_id|>assistant<|end_header_id|>\n\n")},
        .assistant = {TEXT("{{content}}<|eot_id|>")},
        .observation = {TEXT("<|start_header_id|>ipython<|end_header_id|>\n\n{{content}}<|eot_id|>"
                             "<|start_header_id|>assistant<|end_header_id|>\n\n")},
        .default_system = "",
        .stop_words = {"<|eot_id|>", "<|eom_id|>"},
        .replace_eos = true,
    },
    {
        .name = "solar",
        .system = {TEXT("### System:\n{{content}}\n\n")},
        .user = {TEXT("### User:\n{{content}}\n\n### Assistant:\n")},
        .assistant = {TEXT("{{content}}")},
        .default_system = "",
        .efficient_eos = true,
    },
    {
        .name = "mistral",
        .prefix = {BOS},
        .system = {TEXT("{{content}}\n\n")},
        .user = {TEXT("[INST] {{content}}[/INST]")},
        .assistant = {TEXT(" {{content}}"), EOS},
        .observation = {TEXT("[TOOL_RESULTS] {\"content\": {{content}}}[/TOOL_RESULTS]")},
        .default_system = "",
        .system_in_user = true,
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
    return "default, deepseek, deepseek3, qwen, qwen3, qwen3_nothink, llama2, llama3, solar, "
           "mistral";
}
