// tensor IMAGE.ppm CHANNELS HEIGHT WIDTH RESIZE_HEIGHT RESIZE_WIDTH INTERPOLATION ANTIALIAS BGR: the input, as bytes.
#include <cstdio>
#include <cstdlib>

#include "preprocess.h"

int main(int, char** words) {
    const auto number = [&](int i) { return std::atoi(words[i]); };
    const Preprocess preprocess{number(2),
                                number(3),
                                number(4),
                                number(5),
                                number(6),
                                static_cast<Interpolation>(number(7)),
                                number(8) != 0,
                                number(9) != 0,
                                {0.485, 0.456, 0.406},
                                {0.229, 0.224, 0.225}};
    const std::vector<float> input = preprocess(read_ppm(words[1]));
    std::fwrite(input.data(), sizeof(float), input.size(), stdout);
}
