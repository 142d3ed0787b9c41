/* SPDX-License-Identifier: Apache-2.0 */
#include "args.h"

#include <string.h>

#include "app.h"

static const arg_option *find(const arg_option *options, const char *name)
{
    for (; options->name; options++)
        if (!strcmp(options->name, name))
            return options;
    return NULL;
}

int arguments_parse(arguments *out, const char *name, int argc, char **argv,
                    const arg_option *options)
{
    *out = (arguments){.overrides = argv};
    for (int i = 0; i < argc; i++) {
        if (*argv[i] == '-') {
            const arg_option *option = find(options, argv[i]);
            if (!option)
                return app_usage("%s is not an option of kt %s; see kt help %s", argv[i], name,
                                 name);
            if ((option->value || option->key) && i + 1 == argc)
                return app_usage("%s needs a value; see kt help %s", argv[i], name);
            if (option->flag)
                *option->flag = true;
            if (option->value)
                *option->value = argv[++i];
            if (option->key) /* kept as long as argv */
                out->overrides[out->num_overrides++] = app_text("%s=%s", option->key, argv[++i]);
        } else if (!out->path) {
            out->path = argv[i];
        } else {
            out->overrides[out->num_overrides++] = argv[i];
        }
    }
    if (!out->path)
        return app_usage("kt %s needs a path; see kt help %s", name, name);
    return APP_OK;
}
