/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "core/context.h"
#include "formats/json.h"
#include "model/model.h"

double kt_yarn_mscale(double scale, double mscale)
{
    return scale <= 1 ? 1 : 0.1 * mscale * log(scale) + 1;
}

static kt_status positive(const struct kt_json *json, const char *key, double *value)
{
    KT_TRY(kt_json_real(json, key, KT_JSON_OPTIONAL, value));
    if (!(*value > 0 && *value <= 1e12))
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: \"%s%s\" is missing or not above 0",
                       json->path, json->prefix, key);
    return KT_OK;
}

static kt_status read_yarn(const struct kt_json *json, struct kt_model_config *c)
{
    struct kt_rope_config *r = &c->rope;
    bool truncate = true;
    r->kind = KT_ROPE_YARN;
    r->beta_fast = 32;
    r->beta_slow = 1;
    r->original_max_position_embeddings = c->max_position_embeddings;
    KT_TRY(positive(json, "factor", &r->factor));
    KT_TRY(positive(json, "beta_fast", &r->beta_fast));
    KT_TRY(positive(json, "beta_slow", &r->beta_slow));
    KT_TRY(kt_json_real(json, "mscale", KT_JSON_OPTIONAL, &r->mscale));
    KT_TRY(kt_json_real(json, "mscale_all_dim", KT_JSON_OPTIONAL, &r->mscale_all_dim));
    KT_TRY(kt_config_int(json, "original_max_position_embeddings", false, 1, 1 << 30,
                         &r->original_max_position_embeddings));
    KT_TRY(kt_json_bool(json, "truncate", KT_JSON_OPTIONAL, &truncate));
    r->truncate = truncate;
    r->attention_factor =
        r->mscale && r->mscale_all_dim
            ? kt_yarn_mscale(r->factor, r->mscale) / kt_yarn_mscale(r->factor, r->mscale_all_dim)
            : kt_yarn_mscale(r->factor, 1);
    return positive(json, "attention_factor", &r->attention_factor);
}

static kt_status read_linear(const struct kt_json *json, struct kt_model_config *c)
{
    c->rope.kind = KT_ROPE_LINEAR;
    return positive(json, "factor", &c->rope.factor);
}

static kt_status read_dynamic(const struct kt_json *json, struct kt_model_config *c)
{
    struct kt_rope_config *r = &c->rope;
    r->kind = KT_ROPE_DYNAMIC;
    r->original_max_position_embeddings = c->max_position_embeddings;
    if (r->dim < 4)
        return kt_fail(json->ctx, KT_ERROR_FORMAT,
                       "%s: \"%srope_type\" dynamic needs 4 rotated features or more, not %d",
                       json->path, json->prefix, r->dim);
    return positive(json, "factor", &r->factor);
}

static kt_status read_llama3(const struct kt_json *json, struct kt_model_config *c)
{
    struct kt_rope_config *r = &c->rope;
    r->kind = KT_ROPE_LLAMA3;
    KT_TRY(positive(json, "factor", &r->factor));
    KT_TRY(positive(json, "low_freq_factor", &r->low_freq_factor));
    KT_TRY(positive(json, "high_freq_factor", &r->high_freq_factor));
    if (r->high_freq_factor <= r->low_freq_factor)
        return kt_fail(json->ctx, KT_ERROR_FORMAT,
                       "%s: \"%shigh_freq_factor\" (%g) is not above \"%slow_freq_factor\" (%g)",
                       json->path, json->prefix, r->high_freq_factor, json->prefix,
                       r->low_freq_factor);
    return kt_config_int(json, "original_max_position_embeddings", true, 1, 1 << 30,
                         &r->original_max_position_embeddings);
}

static kt_status read_scaling(const struct kt_json *json, struct kt_model_config *c)
{
    static const struct {
        const char *name;
        kt_status (*read)(const struct kt_json *json, struct kt_model_config *c);
    } kinds[] = {{"linear", read_linear},
                 {"dynamic", read_dynamic},
                 {"yarn", read_yarn},
                 {"llama3", read_llama3}};
    const char *kind = NULL;
    KT_TRY(kt_json_string(json, "type", KT_JSON_OPTIONAL, &kind));
    KT_TRY(kt_json_string(json, "rope_type", KT_JSON_OPTIONAL, &kind));
    if (!kind || strcmp(kind, "default") == 0)
        return KT_OK;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i].name) == 0)
            return kinds[i].read(json, c);
    return kt_fail(json->ctx, KT_ERROR_UNSUPPORTED,
                   "%s: \"%srope_type\" is \"%s\"; default, linear, dynamic, yarn and llama3 are "
                   "supported",
                   json->path, json->prefix, kind);
}

kt_status kt_config_read_rope(const struct kt_json *json, int32_t dim, struct kt_model_config *c)
{
    json_t *scaling = NULL, *parameters = NULL;
    c->rope.dim = dim;
    c->rope.kind = KT_ROPE_DEFAULT;
    c->rope.attention_factor = 1;
    c->rope.theta = 10000;
    if (dim % 2)
        return kt_fail(json->ctx, KT_ERROR_FORMAT, "%s: %d rotated features are not an even number",
                       json->path, dim);
    KT_TRY(positive(json, "rope_theta", &c->rope.theta));
    KT_TRY(kt_json_container(json, "rope_scaling", KT_JSON_OPTIONAL, JSON_OBJECT, &scaling));
    KT_TRY(kt_json_container(json, "rope_parameters", KT_JSON_OPTIONAL, JSON_OBJECT, &parameters));
    struct kt_json inner = {json->ctx, json->path,
                            parameters ? "rope_parameters." : "rope_scaling.",
                            parameters ? parameters : scaling};
    if (parameters)
        KT_TRY(positive(&inner, "rope_theta", &c->rope.theta));
    return inner.object ? read_scaling(&inner, c) : KT_OK;
}

/* The feature pair that turns `rotations` times within the original context, as a real number. */
static double correction_pair(const struct kt_rope_config *r, double rotations)
{
    double pi = 3.14159265358979323846;
    return r->dim * log(r->original_max_position_embeddings / (rotations * 2 * pi)) /
           (2 * log(r->theta));
}

/* float32 throughout, in the order in which transformers computes: at large positions the rounding
 * of a frequency shows in the angle. */
static float yarn_frequency(const struct kt_rope_config *r, int32_t pair, float period)
{
    double low = correction_pair(r, r->beta_fast), high = correction_pair(r, r->beta_slow);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, r->dim - 1);
    if (low == high)
        high += 0.001;
    float ramp = ((float)pair - (float)low) / (float)(high - low);
    float extrapolated = 1 - fminf(fmaxf(ramp, 0), 1);
    return 1 / ((float)r->factor * period) * (1 - extrapolated) + 1 / period * extrapolated;
}

/* High frequencies as they are, low ones divided by factor, those between blended. */
static float llama3_frequency(const struct kt_rope_config *r, float f)
{
    float factor = (float)r->factor, low = (float)r->low_freq_factor;
    float high = (float)r->high_freq_factor, context = (float)r->original_max_position_embeddings;
    float wavelength = (float)(2 * 3.14159265358979323846) / f;
    if (wavelength > context / low)
        return f / factor;
    if (wavelength < context / high)
        return f;
    float smooth = (context / wavelength - low) / (high - low);
    return (1 - smooth) * f / factor + smooth * f;
}

bool kt_rope_is_plain(const struct kt_rope_config *r, int64_t length)
{
    return r->kind != KT_ROPE_DYNAMIC || length <= r->original_max_position_embeddings;
}

/* float32 in the order in which transformers computes, beyond the original context; within it,
 * theta as it is. */
static float theta_for(const struct kt_rope_config *r, int64_t length)
{
    int32_t context = r->original_max_position_embeddings;
    if (kt_rope_is_plain(r, length))
        return (float)r->theta;
    float stretch = (float)r->factor * (float)length / (float)context - (float)(r->factor - 1);
    return (float)r->theta * (float)pow(stretch, (float)((double)r->dim / (r->dim - 2)));
}

static float frequency(const struct kt_rope_config *r, float theta, int32_t pair)
{
    float exponent = (float)(2 * pair) / (float)r->dim;
    float period = (float)pow(theta, exponent);
    switch (r->kind) {
    case KT_ROPE_LINEAR:
        return 1 / period / (float)r->factor;
    case KT_ROPE_YARN:
        return yarn_frequency(r, pair, period);
    case KT_ROPE_LLAMA3:
        return llama3_frequency(r, 1 / period);
    case KT_ROPE_DEFAULT:
    case KT_ROPE_DYNAMIC:
        break;
    }
    return 1 / period;
}

void kt_rope_tables(const struct kt_rope_config *r, int64_t length, int32_t first, int32_t count,
                    float *cos_table, float *sin_table)
{
    int32_t half = r->dim / 2;
    float scale = (float)r->attention_factor, theta = theta_for(r, length);
    for (int32_t i = 0; i < half; i++) {
        float f = frequency(r, theta, i);
        for (int32_t p = 0; p < count; p++) {
            float angle = (float)(first + p) * f;
            cos_table[(size_t)p * (size_t)half + (size_t)i] = (float)cos(angle) * scale;
            sin_table[(size_t)p * (size_t)half + (size_t)i] = (float)sin(angle) * scale;
        }
    }
}

int32_t kt_config_context(const struct kt_model_config *c)
{
    if (c->rope.kind != KT_ROPE_DYNAMIC)
        return c->max_position_embeddings;
    return (int32_t)fmin(floor(c->max_position_embeddings * c->rope.factor), 1 << 30);
}
