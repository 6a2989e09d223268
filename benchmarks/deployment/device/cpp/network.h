// Written by `deploy`: the same facts as in engine.json, preprocess.json and classes.json.
#pragma once

#include <vector>

#include "preprocess.h"

namespace network {

constexpr int batch = {{ engine.batch }}, threads = {{ engine.threads }};
constexpr bool returns_probabilities = {{ (engine.returns == "probabilities") | cpp }};

inline const Preprocess preprocess{
    {{ how.channels }}, {{ how.height }}, {{ how.width }},  // channels, height, width
    {% set resize = how.resize or {"height": 0, "width": 0} %}
    {{ resize.height if "height" in resize else resize.shorter_side }}, {{ resize.width | default(0) }},  // resize
    Interpolation::{{ how.interpolation }},
    {{ how.antialias | cpp }}, {{ (how.channel_order == "bgr") | cpp }},  // antialias, BGR
    { {{- how.mean | map("cpp") | join(", ") -}} },  // mean
    { {{- how.std | map("cpp") | join(", ") -}} },  // std
};

// In the order of their numbers; empty for another network than a classifier.
inline const std::vector<const char*> classes{
{% for name in classes %}
    {{ name | cpp }},
{% endfor %}
};

}  // namespace network
